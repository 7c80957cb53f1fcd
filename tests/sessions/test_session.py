"""Both sessions over the in-memory transport: the same code as over gRPC, without the sockets."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import ENTROPY, IDENTITY, QUESTIONS, RATE, batches, pair, train, weights
from torch import Tensor

from bitseam.errors import DataError
from bitseam.runs.checkpoint import build_client, build_server, load_client, newest
from bitseam.runs.optimise import Stepper
from bitseam.sessions.client import ClientSession
from bitseam.sessions.party import ServerParty
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter
from bitseam.text.symbols import dictionary_of, kept_dictionary, text_message
from bitseam.transport import memory_pair


def test_identity_split_training_is_unsplit_training(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, **IDENTITY, out=str(tmp_path))
    with pair(recipe) as split:
        train(split.client, recipe, batches(recipe, split.client))
        trained = weights(split.client.model) | weights(split.party.model)

    torch.manual_seed(recipe.seed)  # as the server does
    server = build_server(recipe, str)
    client = build_client(recipe, str)
    steppers = [
        Stepper(client, recipe.client.rate, recipe.train),
        Stepper(server, recipe.server.rate, recipe.train),
    ]
    fresh = ClientSession(client, lambda: memory_pair()[0], 17)
    draw = batches(recipe, fresh)
    client.vision.calibrate(torch.cat([draw(i)[0] for i in range(recipe.train.calibrate)]))
    for step in range(recipe.train.steps):
        features, text = draw(step)
        server.loss(text, {name: q.levels for name, q in client(features, text).items()}).backward()
        for stepper in steppers:
            stepper.step(int(text.answers.sum()))
    unsplit = weights(client) | weights(server)
    assert unsplit.keys() == trained.keys()
    for name, weight in unsplit.items():
        torch.testing.assert_close(trained[name], weight, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_the_server_is_not_told_what_an_error_of_the_clients_says(tiny: Tiny) -> None:
    told: list[BaseException] = []
    with suppress(DataError), pair(make_recipe(tiny)) as split:
        told = split.failures
        raise DataError("scans/patient-17.png: not a readable image")
    assert [str(error) for error in told] == ["the client stopped: DataError"]


@pytest.mark.parametrize(("fails_at", "told"), [(0, False), (2, True)])
def test_checkpoints_are_called_intact_where_there_are_any(
    tiny: Tiny, tmp_path: Path, fails_at: int, told: bool
) -> None:
    recipe = make_recipe(tiny, train__calibrate=1, out=str(tmp_path))
    with pair(recipe) as split:
        draw = batches(recipe, split.client)

        def fail(number: int) -> tuple[Tensor, TextBatch]:
            if number == fails_at:
                raise DataError("an image is gone")
            return draw(number)

        with pytest.raises(DataError, match=r"training stopped in step .*: an image is gone") as error:
            train(split.client, recipe, fail)
    assert ("are intact" in str(error.value)) == told == any((tmp_path / "client").glob("step-*"))


def test_accumulated_micro_batches_are_one_large_batch(tiny: Tiny, tmp_path: Path) -> None:
    ended = []
    for batch, accumulate in ((4, 1), (2, 2)):
        changes = {"train__batch": batch, "train__accumulate": accumulate, "train__calibrate": 2 * accumulate}
        recipe = make_recipe(tiny, **IDENTITY, **changes, train__steps=2)
        out = tmp_path / str(batch)
        recipe = replace(recipe, out=str(out))
        with pair(recipe) as split:
            train(split.client, recipe, batches(recipe, split.client))
            ended.append(weights(split.client.model) | weights(split.party.model))
    for name in ended[0]:
        torch.testing.assert_close(ended[0][name], ended[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "seam",
    [
        {},
        {"streams__image__levels": 3, "streams__image__channels": 20, "streams__image__gradient__block": 16},
        {"streams__image__quantizer": "rd-fsq-tensor", "streams__image__gradient__id": "bf16"},
        {"streams__image__quantizer": "tanh-fsq", "streams__image__levels": 5},
        {"streams__image__quantizer": "learned-clip-fsq", "streams__image__channels": 20},
        {"streams__text__quantizer": "learned-clip-fsq", "streams__text__levels": 8},
        {"streams__image": {"quantizer": "none", "codec": "fp16", "gradient": "fp16"}},
        {"streams__text__levels": 8, "streams__text__clip": 3.0},
        ENTROPY | {"streams__image__gradient__id": "entropy-stochastic", "streams__image__gradient__step": 1.0},
        {"streams__image__quantizer": "rd-fsq-tensor", "streams__image__codec__id": "entropy-uniform"},
        {"streams__text__levels": 8, "streams__text__codec__id": "entropy-uniform"},
        {
            "streams__image": {
                "quantizer": "step-fsq",
                "levels": 7,
                "steps": [0, *[0.5] * 16, *[1.5] * 15],
                "codec": {"id": "entropy-uniform", "groups": 32},
                "projection": "fixed",
            }
        },
        {"streams__text": {"quantizer": "step-fsq", "codec": "entropy-uniform", "levels": 5}},
        {"streams__image": RATE | {"distortion_weight": 0.05}},
        {"streams__image": RATE | {"distortion_weight": 0.05, "codec": {"id": "entropy-uniform", "contexts": 3}}},
        {"streams__text": RATE | {"rates": (1, 2)}},
        {"train__autocast": "bf16"},
        {"streams__image__projection": "fixed"},
        {"server__tune": "lora"},
        {"server__tune": "frozen"},
        {"client__tune_vision": True},
    ],
)
def test_every_kind_of_seam_learns(tiny: Tiny, tmp_path: Path, seam: dict[str, Any]) -> None:
    rates = {"client__rate": 1e-2, "server__rate": 1e-2, "train__steps": 30, "train__checkpoint_every": 100}
    recipe = make_recipe(tiny, **rates, **seam, out=str(tmp_path))
    losses: list[float] = []
    with pair(recipe) as split:
        split.party.on_step = lambda report: losses.append(report.loss)
        train(split.client, recipe, batches(recipe, split.client))
    assert len(losses) == 30
    assert sum(losses[-4:]) < 0.98 * sum(losses[:4]), losses


@pytest.mark.parametrize("streams", [{}, {"streams__text": {}}], ids=["ids", "codes"])
def test_both_sides_know_the_statistics_that_the_codes_were_made_with(
    tiny: Tiny, tmp_path: Path, streams: dict[str, Any]
) -> None:
    rates = {"client__rate": 1e-2, "train__steps": 12, "train__checkpoint_every": 100}
    recipe = make_recipe(tiny, **rates, **streams, out=str(tmp_path))
    with pair(recipe) as split:
        features, tokens = batches(recipe, split.client)(0)
        split.client.calibrate(features, tokens)
        first = split.client.model.streams["image"].quantizer.statistics()
        train(split.client, recipe, batches(recipe, split.client))
        senders, receivers = split.client.streams, split.party.model.receivers()
        assert list(senders) == list(receivers) == ["image", "text"][: 1 + len(streams)]
        for name, sender in senders.items():
            mean, std = sender.quantizer.statistics()
            assert torch.equal(mean, receivers[name].projection.mean)
            assert torch.equal(std, receivers[name].projection.std)
        assert not torch.equal(first[0], senders["image"].quantizer.statistics()[0])  # or this shows nothing


@pytest.mark.parametrize("channels", [20, None])
def test_a_fixed_projection_stays_as_it_starts(tiny: Tiny, tmp_path: Path, channels: int | None) -> None:
    changes = {"streams__image__projection": "fixed", "streams__image__channels": channels, "train__steps": 3}
    recipe = make_recipe(tiny, **changes, out=str(tmp_path))
    with pair(recipe) as split:
        sides = [split.client.model.streams["image"].quantizer.project, split.party.model.streams["image"].projection]
        start = [side.weight.detach().clone() for side in sides]
        before = weights(split.client.model)
        train(split.client, recipe, batches(recipe, split.client))
        assert all(torch.equal(side.weight, weight) for side, weight in zip(sides, start, strict=True))
        assert any(not torch.equal(before[name], weight) for name, weight in weights(split.client.model).items())
    torch.testing.assert_close(start[0] @ start[1], torch.eye(len(start[0])))  # the server undoes the client's


def test_ledger_counts_every_byte(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, streams__image__channels=16, out=str(tmp_path))
    with pair(recipe) as split:
        train(split.client, recipe, batches(recipe, split.client))
        sent, received = split.client.socket_bytes() or (0, 0)
        mine = split.client.ledger
        assert (mine.total("up").bytes, mine.total("down").bytes) == (sent, received)
        assert mine.total("up").bytes == split.sessions[0].ledger.total("up").bytes
        image = mine.entries["up", "Forward", "image (uniform)"]
        tokens = split.client.model.vision.tokens
        assert image.messages == 4
        assert image.bytes == 4 * 2 * tokens * 16 // 4  # steps x batch x tokens x channels at 2 bits
        assert image.fp16_bytes == 16 * image.bytes  # two bytes for each of 32 features


def test_tables_cross_once_and_are_kept_on_both_sides(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, **ENTROPY, out=str(tmp_path))
    with pair(recipe) as split:
        saved = train(split.client, recipe, batches(recipe, split.client))
        mine, codec = split.client.ledger, split.party.model.receivers()["image"].codec(0)
        assert mine.total("up").bytes == split.client.socket_bytes()[0]
        assert mine.entries["up", "Calibrate", "rest"].messages == 1
        assert mine.entries["up", "Calibrate", "rest"].bytes > len(codec.table_bytes())
        image = mine.entries["up", "Forward", "image (entropy-uniform)"]
    assert codec.tables
    packed = recipe.train.steps * 2 * split.client.model.vision.tokens * 32 // 4
    assert image.bytes < packed + 4 * recipe.train.steps
    model, _, _ = load_client(saved, str)
    party = ServerParty(recipe, str, newest(tmp_path, "server"))
    assert party.model.receivers()["image"].codec(0) == model.senders()["image"].codec(0) == codec


@pytest.mark.parametrize("streams", [{}, {"streams__text": {}}], ids=["ids", "codes"])
def test_texts_are_compressed_by_what_was_calibrated_on(tiny: Tiny, tmp_path: Path, streams: dict[str, Any]) -> None:
    recipe = make_recipe(tiny, **streams, out=str(tmp_path))
    with pair(recipe) as split:
        features, words = batches(recipe, split.client)(0)
        split.client.calibrate(features, words)
        known = kept_dictionary(split.client.model)
        assert known == kept_dictionary(split.party.model)
        assert known.endswith(dictionary_of(words, split.client._vocabulary, hidden=bool(streams)))
        alone = text_message(words, split.client._vocabulary)
        sent = split.client._text(words).symbols
        assert len(sent) < len(alone.symbols) / 2
        saved = train(split.client, recipe, batches(recipe, split.client))
        known = kept_dictionary(split.client.model)
    assert kept_dictionary(load_client(saved, str)[0]) == known
    with pair(recipe) as split:  # both go on from their checkpoints, and ask the same
        assert kept_dictionary(split.party.model) == known


def test_tables_are_sent_again_when_codes_have_drifted(tiny: Tiny) -> None:
    recipe = make_recipe(tiny, **ENTROPY, streams__image__levels=16, streams__image__clip=2.51)
    with pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        sender, receiver = split.client.streams["image"], split.party.model.receivers()["image"]
        statistics = {name: b.clone() for name, b in sender.quantizer.named_buffers()}
        sizes, used = [], {receiver.codec(0)}
        for step in range(1, 41):
            sender.quantizer.load_state_dict(statistics, strict=False)  # no help from that side
            sent = split.client.ledger.entries["up", "Forward", "image (entropy-uniform)"].bytes
            split.client.step(step, 0, True, features / 4, text)
            sizes.append(split.client.ledger.entries["up", "Forward", "image (entropy-uniform)"].bytes - sent)
            assert receiver.codec(0) == sender.codec(0)
            used.add(receiver.codec(0))
        assert 2 <= len(used) <= 8
        assert sizes[-1] < 0.8 * sizes[0]


def test_asking_gives_the_same_answers_alone_and_in_company(tiny: Tiny) -> None:
    recipe = make_recipe(tiny)
    with pair(recipe) as split:
        features, text = batches(recipe, split.client)(0)
        split.client.calibrate(features, text)
        prompter = Prompter(recipe.text)
        both = list(zip(*split.client.ask(features, prompter.batch(QUESTIONS[:2]), 5), strict=True))
        for i in range(2):
            alone = next(zip(*split.client.ask(features[i : i + 1], prompter.batch([QUESTIONS[i]]), 5), strict=True))
            assert prompter.decode(alone) == prompter.decode(both[i])
