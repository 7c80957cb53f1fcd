"""A link that breaks, a server or a client that begins anew, wherever it is: nothing is lost, nothing happens twice.

Both sides are in one process here and share its random state, so nothing may draw on it. With dropout, and in processes
of their own: tests/cli.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import QUESTIONS, RATE, batches, weights
from torch import Tensor

from bitseam import config
from bitseam.errors import (
    BitseamError,
    ConfigError,
    PeerGoneError,
    RefusedError,
    TransportError,
    UntrustedError,
)
from bitseam.runs.checkpoint import build_client, folder_of, held
from bitseam.sessions.client import ClientSession
from bitseam.sessions.connection import Connection
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.text.prompts import Prompter
from bitseam.train import train
from bitseam.transport import Channel, memory_pair
from bitseam.wire import messages_pb2 as pb


class Breaking(Channel):
    """Another channel, until `breaks` says so: a frame then vanishes on its way, and the channel with it."""

    def __init__(self, whole: Channel, breaks: Callable[[str], bool]) -> None:
        self.peer, self.name = whole.peer, whole.name
        self._whole, self._breaks = whole, breaks

    @property
    def gone(self) -> bool:
        return self._whole.gone

    def send(self, frame: bytes) -> None:
        self._break("before it was sent")
        self._whole.send(frame)
        self._break("after it was sent")

    def receive(self, timeout: float | None = None) -> bytes:
        frame = self._whole.receive(timeout)
        self._break("before it was received")
        return frame

    def close(self) -> None:
        self._whole.close()

    def socket_bytes(self) -> tuple[int, int] | None:
        return self._whole.socket_bytes()

    def _break(self, where: str) -> None:
        if self._breaks(where):
            self._whole.close()
            raise PeerGoneError(f"broken {where}")


@dataclass
class Server:
    """A server that can be killed and started again; each connection breaks where it is told to."""

    recipe: config.Recipe
    breaks: Callable[[str], bool] = lambda where: False
    failures: list[BaseException] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    dialled: int = 0
    name: str = ""  # of the client that dials

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.party = ServerParty(self.recipe, str)

    def dial(self) -> Channel:
        left, right = memory_pair(self.name)
        session = ServerSession(self.party, right)
        self.dialled += 1

        def serve() -> None:
            try:
                session.run()
            except BitseamError as error:
                self.failures.append(error)
            finally:
                right.close()

        self.threads.append(threading.Thread(target=serve))
        self.threads[-1].start()
        return Breaking(left, self.breaks)

    @contextmanager
    def client(self, recipe: config.Recipe | None = None, training: bool = True) -> Iterator[ClientSession]:
        """A client process, as it were: fresh weights, and a session that is open."""
        recipe = recipe or self.recipe
        torch.manual_seed(recipe.seed)
        model, prompter = build_client(recipe, str), Prompter(recipe.text)
        agreed = terms(recipe, model.senders(), prompter, None if training else "fresh")
        try:
            with ClientSession(model, self.dial, prompter.vocabulary, patience=20) as session:
                session.open(agreed, training, partial(held, recipe, "client"))
                yield session
        finally:
            for thread in self.threads:
                thread.join(timeout=30)
                assert not thread.is_alive()


def trained(server: Server) -> dict[str, Tensor]:
    with server.client() as session:
        train(session, server.recipe, batches(server.recipe, session))
        return weights(session.model) | weights(server.party.model)


def recipe_in(tiny: Tiny, out: Path, **changes: object) -> config.Recipe:
    """What remembers most: statistics, directions and tables that follow the features, at two rates."""
    common = {
        "train__accumulate": 2,
        "train__calibrate": 2,
        "streams__image": RATE | {"rates": (1, 2), "codec": {"id": "entropy-uniform", "contexts": 3}},
    }
    return make_recipe(tiny, **common, **changes, out=str(out))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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
    recipe = recipe_in(tiny, tmp_path / "whole")
    undisturbed = trained(Server(recipe))
    sent = 0

    def breaks(here: str) -> bool:
        nonlocal sent
        sent += here == "after it was sent"
        if here == "after it was sent" and sent == at + 1:  # the first is the Hello
            for thread in server.threads[:-1]:
                thread.join()
            server.party.save = lambda seat: None  # a killed one writes no more
            server.party.compute.submit(int).result()  # what it was at is done, and forgotten
            server.start()
            return True
        return False

    server = Server(replace(recipe, out=str(tmp_path / "anew")), breaks)
    assert same(trained(server), undisturbed)
    assert sent > at + 1


@pytest.mark.parametrize("at", range(1, 13))
def test_a_client_that_begins_anew_changes_nothing(tiny: Tiny, tmp_path: Path, at: int) -> None:
    recipe = recipe_in(tiny, tmp_path / "whole")
    undisturbed = trained(Server(recipe))

    class Killed(BaseException):
        pass

    sent = 0

    def breaks(here: str) -> bool:
        nonlocal sent
        sent += here == "before it was received"
        if here == "before it was received" and sent == at + 1:
            raise Killed
        return False

    server = Server(replace(recipe, out=str(tmp_path / "anew")), breaks)
    with pytest.raises(Killed):
        trained(server)
    assert same(trained(server), undisturbed)


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
