"""What one side sends that the other refuses, by name and with whose fault it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import ENTROPY, Pair, batches, pair, weights

from bitseam.errors import NonFiniteError, PeerGoneError, RefusedError
from bitseam.quant import Quantized
from bitseam.text.prompts import Prompter
from bitseam.text.symbols import text_message
from bitseam.wire import messages_pb2 as pb


def tables(size: int, stream: int = 0) -> pb.Statistics:
    return pb.Statistics(stream=stream, tables=[pb.Tables(frequencies=bytes(size))])


@pytest.mark.parametrize(
    ("seam", "told", "complaint"),
    [
        (ENTROPY, tables(31), "take 32 bytes, not 31"),
        (ENTROPY, tables(32), "table 0"),
        (ENTROPY | {"streams__text": {}}, tables(32, stream=1), "text: tables for a codec that has none"),
        (ENTROPY, pb.Statistics(stream=3, mean=bytes(4), std=bytes(4)), "stream 3, which was not agreed"),
        (
            {"streams__image": {"quantizer": "none", "codec": "fp16"}},
            pb.Statistics(mean=bytes(4), std=bytes(4)),
            "image: statistics for a quantizer that has none",
        ),
    ],
)
def test_statistics_are_checked(tiny: Tiny, seam: dict[str, Any], told: pb.Statistics, complaint: str) -> None:
    with pytest.raises(RefusedError, match=complaint), pair(make_recipe(tiny, **seam)) as split:
        state = {name: tensor.clone() for name, tensor in split.party.model.streams.state_dict().items()}
        split.client._connection.exchange(pb.Calibrate(streams=[told]), pb.Ack)
    assert all(torch.equal(tensor, state[name]) for name, tensor in split.party.model.streams.state_dict().items())


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("stream.image.codec.0", '{"id":"fp16"}'),
        ("text.tokenizer", "0123456789abcdef"),
        ("train.steps", "5"),
        ("seam.width", ""),
    ],
)
def test_a_difference_is_refused_by_name_on_both_sides(tiny: Tiny, term: str, value: str) -> None:
    refused: list[Pair] = []
    with pytest.raises(RefusedError, match=term) as caught, pair(make_recipe(tiny), **{term: value}) as split:
        refused.append(split)
    assert not refused
    assert (value or "(absent)") in str(caught.value)


def test_nan_features_stop_both_sides_with_the_reason(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(NonFiniteError), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        before = weights(split.party.model)
        features[0, 0, 0] = float("nan")
        split.client.step(1, 0, True, features, text)
    assert isinstance(split.failures[0], PeerGoneError)
    assert "NonFiniteError" in str(split.failures[0])
    after = weights(split.party.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_step_out_of_order_is_refused(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match="step 9 where 1 is due"), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        split.client.step(9, 0, True, features, text)
    assert "step 9 where 1 is due" in str(split.failures[0])


def test_codes_of_another_shape_are_refused(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match="image codes: shape"), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        wrong = Quantized(torch.zeros(2, 4, 31), torch.zeros(()))
        split.client.streams["image"].quantizer.forward = lambda x: wrong
        split.client.step(1, 0, True, features, text)


def test_a_question_that_holds_its_answer_is_refused(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match="a question holds no answers"), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        list(split.client.ask(features, text, 5))


def test_text_that_is_damaged_is_refused_by_name(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match="text: 0 bytes are not"), pair(recipe) as split:
        image = pb.Coded(shape=[1, 1, 1])
        split.client._connection.exchange(pb.Forward(step=1, text=pb.Text(sequences=1), streams=[image]), pb.Backward)
    assert split.party.step == 0


HUGE = tuple(np.array([number], "<f4").tobytes() for number in (65536, -1e38))
NOT_FINITE = np.array([np.nan], "<f4").tobytes(), np.array([np.inf], "<f4").tobytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f in ("mean", "std") for v in (*NOT_FINITE, HUGE[0])] + [("mean", HUGE[1])],
)
def test_statistics_that_nobody_can_compute_with_are_the_clients_fault(tiny: Tiny, field: str, value: bytes) -> None:
    recipe = make_recipe(tiny)
    told = {"mean": bytes(4 * 32), "std": np.ones(32, "<f4").tobytes()}
    told[field] = value + told[field][4:]
    with pytest.raises(RefusedError, match=rf"\(bad message\): image: statistics: {field}"), pair(recipe) as split:
        split.client._connection.exchange(pb.Calibrate(streams=[pb.Statistics(**told)]), pb.Ack)


def test_statistics_may_be_large(tiny: Tiny) -> None:
    with pair(make_recipe(tiny)) as split:
        most = np.full(32, 65504, "<f4").tobytes()
        split.client._connection.exchange(pb.Calibrate(streams=[pb.Statistics(mean=most, std=most)]), pb.Ack)
        assert float(split.party.model.receivers()["image"].projection.mean[0]) == 65504


@pytest.mark.parametrize(
    ("codec", "number", "complaint"),
    [("fp16", b"\x00\x7e", "payload of codec fp16"), ("bf16", b"\x80\x47", "65536 is too large to compute with")],
)
def test_features_that_nobody_can_compute_with_are_the_clients_fault(
    tiny: Tiny, codec: str, number: bytes, complaint: str
) -> None:
    recipe = make_recipe(tiny, streams__image={"quantizer": "none", "codec": codec, "gradient": "fp32"})
    image = pb.Coded(shape=[1, 4, 32], payload=number * 128)
    text = text_message(Prompter(recipe.text).batch(["dog ?"], ["no"]), 16)
    with pytest.raises(RefusedError, match=rf"\(bad message\): image codes: {complaint}"), pair(recipe) as split:
        split.client._connection.exchange(pb.Forward(step=1, streams=[image], text=text), pb.Backward)


def test_weights_that_are_not_finite_are_the_clients_fault(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, train__sharing="averaged", train__clients=2)
    with pytest.raises(RefusedError, match=r"\(bad message\): weights: payload of codec fp32"), pair(recipe) as split:
        sent = pb.Average(weights=pb.Coded(shape=[1], payload=NOT_FINITE[0]))
        split.client._connection.exchange(sent, pb.Averaged)


def test_an_average_of_no_step_is_the_clients_fault(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, train__sharing="averaged", train__clients=2)
    with (
        pytest.raises(RefusedError, match=r"\(bad message\): average of step 0: no step is whole"),
        pair(recipe) as split,
    ):
        sent = pb.Average(weights=pb.Coded(shape=[1], payload=bytes(4)))
        split.client._connection.exchange(sent, pb.Averaged)


def test_a_loss_that_is_not_finite_is_the_servers_own(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match=r"\(server error\): the loss of step 1 is nan"), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        with torch.no_grad():
            next(iter(split.party.model.language.model.parameters())).fill_(float("nan"))
        split.client.step(1, 0, True, features, text)


def test_training_text_with_nothing_behind_its_image_is_refused(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pytest.raises(RefusedError, match=r"\(bad message\): text: nothing follows the image"), pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        split.client.step(1, 0, True, features, replace(text, image_at=text.lengths.clone()))


def test_a_question_may_end_in_its_image(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, text__prompt="what {question} {image}")
    with pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        asked = Prompter(recipe.text).batch(["dog ?"])
        assert asked.image_at.tolist() == asked.lengths.tolist()
        assert list(split.client.ask(features[:1], asked, 3))
