"""A link that breaks, a server or a client that begins anew, wherever it is: nothing is lost, nothing happens twice.

Both sides are in one process here and share its random state, so nothing may draw on it. With dropout, and in processes
of their own: tests/cli.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from breaking import Server, changes_nothing, client_killed_at, recipe_in, same, server_killed_at, trained
from conftest import Tiny, make_recipe
from pairs import QUESTIONS, batches, train

from bitseam import config
from bitseam.errors import (
    BitseamError,
    ConfigError,
    PeerGoneError,
    RefusedError,
    TransportError,
    UntrustedError,
)
from bitseam.runs.checkpoint import folder_of
from bitseam.sessions.connection import Connection
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.party import ServerParty
from bitseam.text.prompts import Prompter
from bitseam.transport import Channel
from bitseam.wire import messages_pb2 as pb


@pytest.mark.parametrize("where", ["before it was sent", "after it was sent", "before it was received"])
def test_a_link_that_breaks_at_every_message_changes_nothing(tiny: Tiny, tmp_path: Path, where: str) -> None:
    recipe = recipe_in(tiny, tmp_path / "whole")
    undisturbed = trained(Server(recipe))
    broken: list[int] = []
    passed = 0

    def breaks(here: str) -> bool:
        nonlocal passed
        passed += here == where
        if here == where and passed % 3 == 0:  # a Hello and its Welcome come between
            broken.append(passed)
            return True
        return False

    server = Server(replace(recipe, out=str(tmp_path / "broken")), breaks)
    steps: list[int] = []
    server.party.on_step = lambda report: steps.append(report.step)
    assert same(trained(server), undisturbed)
    assert len(broken) >= 8
    assert server.dialled > 8
    assert steps == [1, 2, 3, 4]  # each once


@pytest.mark.parametrize("at", range(1, 13))
def test_a_server_that_begins_anew_changes_nothing(tiny: Tiny, tmp_path: Path, at: int) -> None:
    """Killed at each message of a run in turn, calibration and checkpoints among them."""
    changes_nothing(recipe_in(tiny, tmp_path / "whole"), tmp_path / "anew", partial(server_killed_at, at=at))


@pytest.mark.parametrize("at", range(1, 13))
def test_a_client_that_begins_anew_changes_nothing(tiny: Tiny, tmp_path: Path, at: int) -> None:
    changes_nothing(recipe_in(tiny, tmp_path / "whole"), tmp_path / "anew", partial(client_killed_at, at=at))


def test_a_repeated_step_with_other_contents_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    server = Server(make_recipe(tiny, out=str(tmp_path)))
    with pytest.raises(RefusedError, match="step 1 where 2 is due"), server.client() as session:
        features, text = batches(server.recipe, session)(0)
        session.calibrate(features, text)
        session.step(1, 0, True, features, text)
        session._connection.again(PeerGoneError("cut"))
        session.step(1, 0, True, features + 1, text)


def test_an_old_connection_has_no_say_once_its_client_is_back(tiny: Tiny, tmp_path: Path) -> None:
    server = Server(make_recipe(tiny, out=str(tmp_path)))
    with server.client() as old:
        features, text = batches(server.recipe, old)(0)
        old.calibrate(features, text)
        with server.client() as session:
            session.calibrate(features, text)
            with pytest.raises(RefusedError, match="its client has come back through another"):
                old.step(1, 0, True, features, text)
            session.step(1, 0, True, features, text)
            server.party.compute.submit(int).result()  # the step is taken after its answer is sent
            assert server.party.step == 1


def test_an_answer_that_breaks_off_is_told_once(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, out=str(tmp_path))
    answers: list[list[list[int]]] = []
    for broken in ((), (5, 9)):  # the third is the first token's
        received = 0

        def breaks(here: str, broken: tuple[int, ...] = broken) -> bool:
            nonlocal received
            received += here == "before it was received"
            return here == "before it was received" and received in broken

        server = Server(recipe, breaks)
        with server.client() as session:
            features, text = batches(recipe, session)(0)
            session.calibrate(features, text)
            answers.append(list(session.ask(features[:1], Prompter(recipe.text).batch(QUESTIONS[:1]), 6)))
    assert len(answers[0]) > 1
    assert answers[0] == answers[1]
    assert server.dialled == 3


def test_halves_of_different_runs_or_steps_are_not_joined(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, out=str(tmp_path / "run"))
    trained(Server(recipe))
    elsewhere = replace(recipe, out=str(tmp_path / "elsewhere"))
    with pytest.raises(RefusedError, match=r"the client's folder holds checkpoints of run \w{8} \(steps \[2, 4\]\)"):
        trained_with(Server(elsewhere), recipe)
    with pytest.raises(RefusedError, match="no step to go on from: the client has checkpoints of steps none"):
        trained_with(Server(recipe), elsewhere)
    with pytest.raises(ConfigError, match=r"train\.steps was 4 and is 9"):
        Server(replace(recipe, train=replace(recipe.train, steps=9)))
    folder_of(recipe.folder, "client", 4).rename(tmp_path / "lost")
    with Server(recipe).client(recipe) as session:
        assert session.reached == 2


def trained_with(server: Server, recipe: config.Recipe) -> None:
    with server.client(recipe) as session:
        train(session, recipe, batches(recipe, session))


def test_a_server_that_only_answers_trains_nobody(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, out=str(tmp_path))
    trained(Server(recipe))
    server = Server(recipe)
    server.party = ServerParty(recipe, str, folder_of(recipe.folder, "server", 2))
    with pytest.raises(RefusedError, match="not to train"), server.client():
        pass


def connection(dial: Callable[[], Channel], patience: float = 20) -> Connection:
    return Connection(dial, Ledger([]), patience)


def test_who_waits_and_for_how_long(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[float] = []

    def never() -> Channel:
        tried.append(0)
        raise PeerGoneError("nobody there")

    with pytest.raises(PeerGoneError, match="nobody there"):
        connection(never, patience=0.5).open(pb.Hello)
    assert len(tried) > 1
    waits = [float(r.getMessage().rpartition("in ")[2].removesuffix(" s")) for r in caplog.records]
    assert all("nobody there" in record.getMessage() for record in caplog.records)
    assert any(earlier != later for earlier, later in pairwise(waits)) or len(waits) < 3  # jitter


@pytest.mark.parametrize("error", [UntrustedError, TransportError])
def test_what_is_wrong_from_the_start_is_told_at_once_but_waited_for_later(error: type[BitseamError]) -> None:
    tried: list[float] = []

    def wrong() -> Channel:
        tried.append(0)
        raise error("wrong")

    with pytest.raises(error, match="wrong"):
        connection(wrong).open(pb.Hello)
    assert len(tried) == 1
    with pytest.raises(error, match="wrong"):
        connection(wrong, patience=0.3).again(PeerGoneError("cut"))
    assert len(tried) > 2
    with pytest.raises(PeerGoneError, match="no connection"):
        connection(wrong).exchange(pb.Ack(), pb.Ack)
