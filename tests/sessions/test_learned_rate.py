"""`rate-fsq` between both halves: what is predicted is sent, and one pair of halves serves several rates."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import ANSWERS, QUESTIONS, RATE, batches, pair, train

from bitseam.errors import RefusedError
from bitseam.runs.checkpoint import build_client, load_client, newest
from bitseam.runs.optimise import Stepper
from bitseam.sessions.client import ClientSession
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.streams import End
from bitseam.text.prompts import Prompter
from bitseam.transport import memory_pair
from bitseam.wire import messages_pb2 as pb


def with_contexts(contexts: int) -> dict[str, Any]:
    return {"id": "entropy-uniform", "groups": 16, "contexts": contexts}


def codecs(stream: End) -> list[Any]:
    return [stream.codec(rate) for rate in range(stream.rates)]


@pytest.mark.parametrize("contexts", [1, 3])
def test_predicted_bytes_are_those_on_the_wire(tiny: Tiny, contexts: int) -> None:
    up = RATE | {"codec": with_contexts(contexts), "projection": "fixed", "rates": (1, 2.5), "distortion_weight": 0.05}
    recipe = make_recipe(tiny, streams__image=up, client__rate=1e-2, train__batch=96)
    with pair(recipe) as split:
        count, model = 96, split.client.model
        sender, receiver = split.client.streams["image"], split.party.model.receivers()["image"]
        pixels = torch.randn(count, 3, 56, 56, generator=torch.Generator().manual_seed(0))
        features, text = model.vision.features(pixels), Prompter(recipe.text).batch(QUESTIONS * 24, ANSWERS * 24)
        split.client.calibrate(features, text)
        stepper, parts = Stepper(model, recipe.client.rate, recipe.train), []
        for step in range(1, 13):
            part = split.client.step(step, 0, True, features, text)
            parts.append(part)
            stepper.step(part.answer_tokens)
            assert codecs(receiver) == codecs(sender)
            assert torch.equal(sender.quantizer.rotation(), receiver.projection.rotation)
        assert sum(part.coded_bytes for part in parts) == split.client.ledger.coded_bytes("Forward", "image")
        for part in parts:
            assert part.predicted_bytes == pytest.approx(part.coded_bytes, rel=0.02)
        assert len({codec.tables for codec in codecs(receiver)}) == 2  # each rate has been drawn
        assert {codec.contexts for codec in codecs(receiver)} == {contexts}
        assert max(part.coded_bytes for part in parts) > 1.5 * min(part.coded_bytes for part in parts)


@pytest.mark.parametrize("contexts", [1, 5])
def test_levels_of_each_rate_cross_unchanged(tiny: Tiny, contexts: int) -> None:
    recipe = make_recipe(tiny, streams__image=RATE | {"rates": (1, 0.5, 4), "codec": with_contexts(contexts)})
    model = build_client(recipe, str).eval()
    features = torch.randn(8, 4, model.vision.tower.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        carried, sender = model.vision(features), model.senders()["image"]
        sender.calibrate(carried)
        for rate, codec in enumerate(codecs(sender)):
            sender.use(rate)
            levels = sender(carried).levels
            assert torch.equal(codec.decode(codec.encode(levels), levels.shape), levels)


def test_one_model_answers_at_each_of_its_rates(tiny: Tiny, tmp_path: Path) -> None:
    up = RATE | {"rates": (1, 4)}
    recipe = make_recipe(tiny, streams__image=up, train__steps=6, train__checkpoint_every=6, out=str(tmp_path))
    with pair(recipe) as split:
        saved = train(split.client, recipe, batches(recipe, split.client))
        features, _ = batches(recipe, split.client)(0)
    sizes = []
    for rate in (0, 1):
        asked = replace(recipe, streams={"image": replace(recipe.streams["image"], rate=rate)})
        model, _, identity = load_client(saved, str, asked.streams)
        party = ServerParty(recipe, str, newest(tmp_path, "server"))  # the server need not be told beforehand
        ours, theirs = memory_pair()
        server = threading.Thread(target=ServerSession(party, theirs).run)
        server.start()
        prompter = Prompter(recipe.text)
        with ClientSession(model, lambda ours=ours: ours, prompter.vocabulary) as client:
            client.open(terms(asked, model.senders(), prompter, str(identity)), False)
            question = prompter.batch(QUESTIONS[:2])
            assert list(client.ask(features, question, 3))
            sizes.append(client.ledger.coded_bytes("Ask", "image"))
        server.join()
    assert sizes[1] < 0.8 * sizes[0]


@pytest.mark.parametrize(
    ("statistics", "complaint"),
    [
        (pb.Statistics(rotation=bytes(1023)), "rotation of 1023 numbers, not 1024"),
        (pb.Statistics(tables=[pb.Tables(frequencies=bytes(480), rate=2)]), "image: rate 2 where 2 were agreed"),
        (pb.Statistics(tables=[pb.Tables(frequencies=bytes(480), rate=1)]), "table 0"),
        (pb.Statistics(tables=[pb.Tables(), pb.Tables(), pb.Tables()]), "stream 0: tables: 3; the limit is 2"),
    ],
)
def test_rates_and_rotations_are_checked(tiny: Tiny, statistics: pb.Statistics, complaint: str) -> None:
    recipe = make_recipe(tiny, streams__image=RATE | {"rates": (1, 2)})
    with pytest.raises(RefusedError, match=complaint), pair(recipe) as split:
        split.client._connection.exchange(pb.Calibrate(streams=[statistics]), pb.Ack)


def test_a_rate_that_was_not_agreed_is_refused(tiny: Tiny) -> None:
    with pytest.raises(RefusedError, match="image: rate 1 where 1 were agreed"), pair(make_recipe(tiny)) as split:
        features, text = batches(make_recipe(tiny), split.client)(0)
        split.client.calibrate(features, text)
        sender = split.client.streams["image"]
        sender.encode = lambda codes: pb.Coded(rate=1, shape=codes.levels.shape, payload=b"")  # type: ignore[method-assign]
        list(split.client.ask(features, Prompter(make_recipe(tiny).text).batch(QUESTIONS[:2]), 3))
