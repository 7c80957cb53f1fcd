"""The seam alone, inside a PyTorch model: one process and two give the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch
from stream_models import (
    FAMILY,
    FLOATS,
    IDENTITY,
    QUANTIZED,
    WIDTH,
    Model,
    batch,
    family,
    in_one,
    in_two,
)
from torch import Tensor, nn

from bitseam import Stream, config
from bitseam.api.sent import Sent
from bitseam.api.stream import Keys
from bitseam.codecs import BUILT_IN
from bitseam.config import QuantizerName
from bitseam.wire import messages_pb2 as pb


@family
def test_one_process_and_two_give_the_same(keys: dict[str, Any]) -> None:
    whole = Model(keys)
    here, there = deepcopy(whole), deepcopy(whole)
    torch.manual_seed(1)
    outputs = in_one(whole)
    torch.manual_seed(1)
    received, ups, downs = in_two(here, there)
    assert all(torch.equal(a, b) for a, b in zip(outputs, received, strict=True))
    for name, value in whole.state_dict().items():
        side = here if name.startswith(("first", "stream.sender", "stream.calibrated")) else there
        assert torch.equal(side.state_dict()[name], value), name
    fp16 = 3 * 2 * 4 * 3 * WIDTH
    sent = Sent(sum(map(len, ups)), sum(map(len, downs)), fp16, fp16)
    assert whole.stream.sent == here.stream.sent == there.stream.sent == sent
    fresh = Model(keys)
    assert not torch.equal(fresh.first[0].weight, whole.first[0].weight)
    assert not torch.equal(fresh.last.weight, whole.last.weight)


@family
def test_evaluation_is_deterministic_and_leaves_all_as_it_was(keys: dict[str, Any]) -> None:
    model = Model(keys)
    in_one(model)
    model.eval()
    with torch.no_grad():
        x = model.first(batch(5))
        model.stream(x)  # the receiving end is told what the last step has made of learned clips
        before = deepcopy(model.state_dict())
        asked = [model.stream(x) for _ in range(3)]
        messages = [model.stream.encode(x) for _ in range(2)]
    assert torch.equal(asked[0], asked[1])
    assert torch.equal(asked[0], asked[2])
    assert len(messages[0]) >= len(messages[1]) == len(model.stream.encode(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone = model.stream(x[1:2])
    if not {"rd-fsq-tensor", "stochastic", "entropy-stochastic", "one-bit"} & {keys["quantizer"], name_of(keys)}:
        torch.testing.assert_close(alone[0], asked[0][1])


def name_of(keys: Mapping[str, Any]) -> str:
    codec = keys.get("codec", "uniform")
    return codec if isinstance(codec, str) else codec["id"]


def test_the_loops_leave_none_out() -> None:
    assert set(QUANTIZED) == set(get_args(QuantizerName)) - {"none"}
    assert {*FLOATS, "delta"} == set(BUILT_IN) - set(config.GRID_CODECS)
    assert set(Keys.__annotations__) == {field.name for field in fields(config.Stream)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_identity_is_plain_autograd(dtype: torch.dtype) -> None:
    model = Model(IDENTITY)
    plain = deepcopy(model)
    for step in range(2):
        for one, way in ((model, model.stream), (plain, nn.Identity())):
            torch.manual_seed(step)  # a stream that draws nothing leaves PyTorch's numbers to the model
            x = one.first(batch(step)).to(dtype)
            one.last(nn.functional.dropout(way(x).float(), 0.5)).square().sum().backward()
    grads = [[p.grad for p in one.parameters()] for one in (model, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))  # type: ignore[arg-type]
    assert model.stream.sent.up > model.stream.sent.fp16_up


@pytest.mark.parametrize("codec", ["stochastic", "entropy-stochastic", "one-bit"])
def test_gradients_are_unbiased(codec: str) -> None:
    draws, x = 300, torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))

    def gradient(stream: Stream) -> Tensor:
        leaf = x.clone().requires_grad_()
        (stream(leaf) * weight).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    exact, coded = Stream(WIDTH, gradient="fp32"), Stream(WIDTH, gradient=codec)
    for stream in (exact, coded):
        stream.calibrate(x)
        stream.eval()
    due = gradient(exact)
    torch.manual_seed(0)
    got = torch.stack([gradient(coded) for _ in range(draws)])
    assert (got[0] - due).abs().max() > 0.01
    off = ((got - due).double() * due).flatten(1).sum(1)
    assert off.mean().abs() <= 6 * off.std() / draws**0.5


def test_what_is_sent_is_what_was_measured() -> None:
    stream, other = Stream(WIDTH, channels=6, gradient="fp16"), Stream(WIDTH, channels=6, gradient="fp16")
    x = torch.randn(5, 7, WIDTH)
    stream.calibrate(x)
    assert stream.sent == Sent()
    first, second = stream.encode(x), stream.encode(x)
    assert len(first) > len(second) > 5 * 7 * 6 * 2 / 8  # the first tells the statistics
    features = other.decode(first)
    features.sum().backward()
    back = other.encode_gradient(features)
    assert other.sent == Sent(len(first), len(back), 2 * x.numel(), 2 * x.numel())
    stream.backward(back)
    assert stream.sent == Sent(len(first) + len(second), len(back), 4 * x.numel(), 2 * x.numel())
    assert (stream.sent.total, stream.sent.fp16) == (len(first) + len(second) + len(back), 6 * x.numel())
    assert str(other.sent) == f"{len(first):,} bytes up and {len(back):,} down, of 840 and 840 as fp16"


def test_the_first_batch_of_training_calibrates_and_no_other() -> None:
    x = torch.randn(50, WIDTH) * 3 + 1
    stream = Stream(WIDTH, channels=6)
    assert not stream.calibrated
    stream(x)
    mean = stream.sender.quantizer.statistics()[0]  # type: ignore[index]
    torch.testing.assert_close(mean, stream.sender.quantizer.projected(x).mean(0))  # type: ignore[operator]
    stream(x * 1.01)
    assert torch.equal(stream.sender.quantizer.statistics()[0], mean)  # type: ignore[index]
    assert stream.calibrated
    assert stream.sender.quantizer.training


@pytest.mark.parametrize("keys", [{}, {"quantizer": "rate-fsq", "levels": 5, "codec": "entropy-uniform"}])
def test_gradients_gather_over_micro_batches_though_statistics_move_on_between(keys: dict[str, Any]) -> None:
    """All forwards come first: autograd must not see statistics of later batches."""
    together, apart = Model(keys | {"gradient": "fp32"}), Model(keys | {"gradient": "fp32"})
    for model in (together, apart):
        model.stream.calibrate(model.first(batch(0)).detach())
    means = []
    ys = []
    for step in range(6):
        ys.append(together.last(together.stream(together.first(batch(3 * step)))).sum())
        means.append(together.stream.receiver.projection.mean.clone())
        apart.last(apart.stream(apart.first(batch(3 * step)))).sum().backward()
    torch.stack(ys).sum().backward()
    assert not torch.equal(means[0], means[-1])
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradients_come_back_in_any_order() -> None:
    x = [torch.randn(4, WIDTH, requires_grad=True) for _ in range(3)]
    here = Stream(WIDTH, channels=6, gradient="fp32")
    there = deepcopy(here)
    messages = [here.encode(one) for one in x]
    features = [there.decode(message) for message in messages]
    backs = {}
    for number in (1, 2, 0):
        (features[number] * (number + 1)).sum().backward()
        backs[number] = there.encode_gradient(features[number])
    for number in (2, 0, 1):
        here.backward(backs[number])
    whole, again = Stream(WIDTH, channels=6, gradient="fp32"), [one.detach().requires_grad_() for one in x]
    torch.stack([(number + 1) * whole(one) for number, one in enumerate(again)]).sum().backward()
    for one, due in zip(x, again, strict=True):
        torch.testing.assert_close(one.grad, due.grad)


def test_the_distortion_is_weighed_as_the_keywords_say() -> None:
    parts = []
    for weight in (0.0, 0.25, 0.5):
        model = Model({"distortion_weight": weight})
        model.stream.calibrate(model.first(batch(0)))
        model.eval()
        model.stream(model.first(batch(0)))
        parts.append(model.stream.distortion)
        assert torch.equal(parts[-1], weight * model.stream.sender(model.first(batch(0))).distortion)
    assert parts[2] > parts[1] > parts[0] == 0
    parts[2].backward()
    assert model.first[0].weight.grad is not None


def test_training_draws_a_rate_for_each_batch_and_evaluation_has_its_own() -> None:
    model = Model(FAMILY["rate-fsq"] | {"rate": 1})
    as_built = model.stream.sender.codec(1).table_bytes()

    def rates(count: int) -> list[int]:
        messages = [model.stream.encode(model.first(batch(step))) for step in range(count)]
        return [pb.Forward.FromString(message[25:]).streams[0].rate for message in messages]

    model.stream.calibrate(model.first(batch(0)))
    model.eval()
    told = pb.Forward.FromString(model.stream.encode(model.first(batch(0)))[25:]).news.streams[0].tables
    assert [table.rate for table in told] == [1]
    assert told[0].frequencies != as_built  # of each rate, learned in calibration
    model.train()
    assert set(rates(16)) == {0, 1}
    model.eval()
    assert set(rates(3)) == {1}


def test_calibrating_anew_forgets_samples_at_both_ends() -> None:
    model = Model(FAMILY["delta"])
    for _ in range(2):
        in_one(model, steps=2)
        model.stream.calibrate(model.first(batch(0)))
