"""Codec `delta`: both ends remember the images of a run, whatever breaks; questions leave that alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from breaking import Server, changes_nothing, client_killed_at, same, server_killed_at, trained
from conftest import Tiny, make_recipe
from pairs import QUESTIONS, batches, pair, train

from bitseam import config
from bitseam.codecs.delta import Changes
from bitseam.errors import BitseamError, CodecError, ConfigError
from bitseam.sessions.client import ClientSession
from bitseam.streams import Receiver
from bitseam.text.prompts import Prompter
from bitseam.wire import messages_pb2 as pb

DELTA = {"id": "delta", "first": "fp16", "inner": {"id": "stochastic", "levels": 4}, "capacity": 3 * 4 * 32 * 4}
TOKENS = 4  # of an image; the last of four images does not fit


def recipe_in(tiny: Tiny, out: Path, **changes: Any) -> config.Recipe:
    settings = {"quantizer": "none", "codec": DELTA}
    common = {"train__accumulate": 2, "train__steps": 6, "train__checkpoint_every": 2, "streams__image": settings}
    return make_recipe(tiny, **common | changes, out=str(out))


def mine(client: ClientSession) -> Changes:
    return client.model.streams["image"].quantizer.changes


def test_images_that_come_again_cross_as_their_change(tiny: Tiny, tmp_path: Path) -> None:
    recipe = recipe_in(tiny, tmp_path)
    with pair(recipe) as running:
        client = running.client
        train(client, recipe, batches(recipe, client))
        theirs = running.party.samples("")["image"]
        assert mine(client).state()["samples"].tolist() == [0, 1, 2]
        assert mine(client).state()["visits"].tolist() == [6, 6, 6]
        assert same(mine(client).state(), theirs.state())
        whole, change = 4 + TOKENS * 32 * 2, 4 + TOKENS * (2 + 32 // 4)
        assert client.ledger.coded_bytes("Forward", "image") == 3 * (whole + 5 * change) + 6 * whole
        before = mine(client).state()
        text = Prompter(recipe.text).batch(QUESTIONS[:2])
        features, _ = batches(recipe, client)(0)
        assert list(client.ask(features, text, 3))
        assert client.ledger.coded_bytes("Ask", "image") == 2 * (whole - 4)
        assert same(mine(client).state(), before)
        assert same(theirs.state(), before)


@pytest.mark.parametrize("where", ["before it was sent", "after it was sent", "before it was received"])
def test_a_link_that_breaks_changes_nothing(tiny: Tiny, tmp_path: Path, where: str) -> None:
    recipe = recipe_in(tiny, tmp_path / "whole")
    undisturbed, passed = trained(Server(recipe)), 0

    def breaks(here: str) -> bool:
        nonlocal passed
        passed += here == where
        return here == where and passed % 3 == 0

    server = Server(replace(recipe, out=str(tmp_path / "broken")), breaks)
    assert same(trained(server), undisturbed)
    assert server.dialled > 8


@pytest.mark.parametrize("at", [1, 2, 3, 4, 7, 8, 9, 13])
def test_a_server_that_begins_anew_changes_nothing(tiny: Tiny, tmp_path: Path, at: int) -> None:
    changes_nothing(recipe_in(tiny, tmp_path / "whole"), tmp_path / "anew", partial(server_killed_at, at=at))


@pytest.mark.parametrize("at", [7, 8, 9])
def test_a_server_of_several_clients_that_begins_anew_is_sent_whole_images_again(
    tiny: Tiny, tmp_path: Path, at: int
) -> None:
    """Right after a checkpoint, too, where both stand at one step and the server has forgotten."""
    recipe = recipe_in(tiny, tmp_path, train__clients=2)
    server = Server(recipe)
    server_killed_at(server, at)
    with server.client() as session:
        train(session, recipe, batches(recipe, session))
        assert same(mine(session).state(), server.party.samples("")["image"].state())
    assert server.dialled > 1


@pytest.mark.parametrize("at", [2, 4, 7, 9])
def test_a_client_that_begins_anew_changes_nothing(tiny: Tiny, tmp_path: Path, at: int) -> None:
    changes_nothing(recipe_in(tiny, tmp_path / "whole"), tmp_path / "anew", partial(client_killed_at, at=at))


def test_one_of_several_clients_that_begins_anew_sends_whole_images_again(tiny: Tiny, tmp_path: Path) -> None:
    recipes = {name: recipe_in(tiny, tmp_path / name, train__clients=2) for name in ("server", "a", "b")}
    server = Server(recipes["server"])
    server.name = "b"
    with server.client(recipes["b"]) as session:
        train(session, recipes["b"], batches(recipes["b"], session))
        assert same(mine(session).state(), server.party.samples("b")["image"].state())
    server.name, server.recipe = "a", recipes["a"]
    client_killed_at(server, 9)
    with server.client(recipes["a"]) as session:
        train(session, recipes["a"], batches(recipes["a"], session))
        theirs = server.party.samples("a")["image"].state()
        assert same(mine(session).state(), theirs)
        assert 0 < theirs["visits"].max() < 6  # of all visits, those before are forgotten
    assert "b" not in server.party._samples  # nobody is remembered who is gone


def test_images_without_numbers_are_not_trained_with(tiny: Tiny, tmp_path: Path) -> None:
    recipe = recipe_in(tiny, tmp_path)
    with pair(recipe) as running:
        features, text = batches(recipe, running.client)(0)
        running.client.calibrate(features, text)
        with pytest.raises(CodecError, match="needs the number of each image to train: 0 were given for 2 images"):
            running.client.step(1, 0, True, features, replace(text, samples=text.samples[:0]))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda coded: coded.samples.pop(), "1 samples of shape"),
        (lambda coded: coded.ClearField("samples"), "of 0 samples where"),
        (lambda coded: coded.samples.__setitem__(0, 2**63), r"2\^63 or more"),
        (lambda coded: coded.MergeFrom(pb.Coded(payload=coded.payload + b"\0")), "bytes"),
        (
            lambda coded: coded.MergeFrom(pb.Coded(payload=b"\1" + coded.payload[1:])),
            "visit 1 came, 0 is due",
        ),
    ],
)
def test_what_no_client_sends_is_refused(tiny: Tiny, tmp_path: Path, spoil: Any, named: str) -> None:
    recipe = recipe_in(tiny, tmp_path)
    with pytest.raises(BitseamError, match=named), pair(recipe) as running:
        draw = batches(recipe, running.client)
        running.client.calibrate(*draw(0))
        sender = running.client.streams["image"]
        whole = sender.encode

        def spoilt(quantized: Any) -> pb.Coded:
            coded = whole(quantized)
            spoil(coded)
            return coded

        sender.encode = spoilt
        running.client.step(1, 0, True, *draw(0))


def test_numbers_where_nobody_remembers_are_refused(tiny: Tiny) -> None:
    for codec in (DELTA, "fp16"):
        receiver = Receiver("image", 0, config.Stream(quantizer="none", codec=codec), 32)
        coded = pb.Coded(shape=[1, 4, 32], payload=bytes(256), samples=[3])
        with pytest.raises(CodecError, match="nobody remembers"):
            receiver.decode(coded, (1, 4))
        coded.ClearField("samples")
        assert receiver.decode(coded, (1, 4)).shape == (1, 4, 32)


def test_prompts_do_not_come_again(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"streams\.text\.codec: codec delta is for images"):
        make_recipe(tiny, streams__text={"quantizer": "none", "codec": DELTA})
