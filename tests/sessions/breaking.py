"""A server that can be killed and started again, over links that break where a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import RATE, batches, train, weights
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError, PeerGoneError
from bitseam.runs.checkpoint import build_client, held
from bitseam.sessions.client import ClientSession
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.text.prompts import Prompter
from bitseam.transport import Channel, memory_pair


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


def at_message(where: str, number: int, happens: Callable[[], bool]) -> Callable[[str], bool]:
    """What breaks a link where a message of this number passes this place, the first after the opening one being 1."""
    passed = 0

    def breaks(here: str) -> bool:
        nonlocal passed
        passed += here == where
        return here == where and passed == number + 1 and happens()

    return breaks


def server_killed_at(server: Server, at: int) -> None:
    """The server is killed once a message is sent, the first after the Hello being 1, and starts anew."""

    def die() -> bool:
        for thread in server.threads[:-1]:
            thread.join()
        server.party.save = lambda seat: None  # a killed one writes no more
        server.party.compute.submit(int).result()  # what it was at is done, and forgotten
        server.start()
        return True

    server.breaks = at_message("after it was sent", at, die)


class Killed(BaseException):
    """Of a client, which nothing catches."""


def client_killed_at(server: Server, at: int) -> None:
    """Train until the client is killed before it receives a message, the first after the Welcome being 1."""

    def die() -> bool:
        raise Killed

    server.breaks = at_message("before it was received", at, die)
    with pytest.raises(Killed):
        trained(server)
    server.breaks = lambda where: False


def changes_nothing(recipe: config.Recipe, anew: Path, killed: Callable[[Server], None]) -> None:
    """A run of which one side is killed and begins anew, in the folder `anew`, ends as one that nobody disturbs."""
    undisturbed = trained(Server(recipe))
    server = Server(replace(recipe, out=str(anew)))
    killed(server)
    assert same(trained(server), undisturbed)
    assert server.dialled > 1
