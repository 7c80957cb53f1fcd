"""Several clients train one server half: in turn, each with a half of its own, or averaged after each round."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import batches, train, weights
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError, CodecError, RefusedError
from bitseam.runs.checkpoint import build_client, held, shared_state
from bitseam.sessions.averaging import Averaging
from bitseam.sessions.client import ClientSession
from bitseam.sessions.party import ServerParty
from bitseam.sessions.seat import Seat
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.text.prompts import Prompter
from bitseam.transport import Channel, memory_pair


class Team:
    """A server in this process, and clients by name, each with a folder and a half of its own."""

    def __init__(self, recipe: config.Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.party = ServerParty(replace(recipe, out=str(out / "server")), str)
        self.threads: list[threading.Thread] = []
        self.order: list[str] = []
        self.party.on_step = lambda report: self.order.append(report.client)

    def dial(self, name: str) -> Channel:
        left, right = memory_pair()
        right.name = name  # what a certificate says over gRPC
        session = ServerSession(self.party, right)

        def serve() -> None:
            try:
                session.run()
            except BitseamError:
                pass
            finally:
                right.close()

        self.threads.append(threading.Thread(target=serve, daemon=True))
        self.threads[-1].start()
        return left

    def session(self, name: str, seed: int = 0) -> ClientSession:
        """Open, with a fresh half."""
        recipe = self.recipe_of(name)
        torch.manual_seed(seed)
        model, prompter = build_client(recipe, str), Prompter(recipe.text)
        session = ClientSession(model, partial(self.dial, name), prompter.vocabulary)
        agreed = terms(recipe, model.senders(), prompter, None)
        session.open(agreed, True, partial(held, recipe, "client"))
        return session

    def recipe_of(self, name: str) -> config.Recipe:
        return replace(self.recipe, out=str(self.out / name))

    def train(self, sessions: dict[str, ClientSession]) -> None:
        """All at once, each in a thread; raises what one of them raised."""
        failures: list[BaseException] = []

        def work(name: str, session: ClientSession) -> None:
            recipe = self.recipe_of(name)
            try:
                with session:
                    train(session, recipe, batches(recipe, session))
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=item) for item in sessions.items()]
        for worker in workers:
            worker.start()
        for thread in [*workers, *self.threads]:
            thread.join(timeout=60)
            assert not thread.is_alive()
        if failures:
            raise failures[0]


def team(tiny: Tiny, out: Path, clients: int, **changes: object) -> Team:
    recipe = make_recipe(tiny, train__clients=clients, train__calibrate=2, **changes)
    return Team(recipe, out)


def test_steps_are_taken_in_turn_and_nobody_gets_ahead(tiny: Tiny, tmp_path: Path) -> None:
    three = team(tiny, tmp_path, 3, train__steps=8, train__accumulate=2, train__checkpoint_every=100)
    names = ["a", "b", "c"]
    sessions = {name: three.session(name, seed) for seed, name in enumerate(names)}
    three.train(sessions)
    assert three.party.step == 24
    assert sorted(three.order) == [name for name in names for _ in range(8)]
    halves = [weights(session.model) for session in sessions.values()]
    assert not any(torch.equal(halves[0][name], halves[1][name]) for name in halves[0] if name.endswith("weight"))
    # While all three train, one waits for two others' micro-batches at the most.
    middle = three.order[6:-6]
    assert {middle.count(name) for name in names} <= {2, 3, 4, 5, 6}


def test_a_step_of_one_client_holds_no_gradient_of_another(tiny: Tiny, tmp_path: Path) -> None:
    """Two micro-batches a step, those of the two clients in between each other: as if one came after the other."""
    ended: list[dict[str, Tensor]] = []
    for together in (True, False):
        two = team(tiny, tmp_path / str(together), 2, train__accumulate=2, server__rate=0.5)
        sessions = {name: two.session(name) for name in ("a", "b")}
        draw = {name: batches(two.recipe, session) for name, session in sessions.items()}
        for name, session in sessions.items():
            session.calibrate(*draw[name](1))
        calls = [("a", 0), ("b", 0), ("a", 1), ("b", 1)] if together else [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
        first = {}
        for name, micro in calls:
            features, text = draw[name](micro + (2 if name == "b" else 0))
            sessions[name].step(1, micro, micro == 1, features, text)
            if (name, micro) == ("a", 1):
                two.party.compute.submit(int).result()
                first = weights(two.party.model)
        ended.append(first)
        for session in sessions.values():
            session.__exit__(None, None, None)
    for name in ended[0]:
        torch.testing.assert_close(ended[0][name], ended[1][name])


def test_each_client_is_read_with_its_own_statistics_and_dictionary(tiny: Tiny, tmp_path: Path) -> None:
    two = team(tiny, tmp_path, 2, streams__image__codec__id="entropy-uniform", streams__image__levels=8)
    answers: list[list[list[int]]] = []
    for company in (False, True):
        sessions = {"a": two.session("a")} | ({"b": two.session("b")} if company else {})
        for number, session in enumerate(sessions.values()):
            features, text = batches(two.recipe, session)(number)  # other texts too
            session.calibrate(features * (1 + 9 * number), text)
        if company:
            assert two.party._known["a"] != two.party._known["b"]
        features, text = batches(two.recipe, sessions["a"])(0)
        question = Prompter(two.recipe.text).batch(["is this a cat ?"])
        answers.append(list(sessions["a"].ask(features[:1], question, 6)))
        for session in sessions.values():
            session.__exit__(None, None, None)
        for thread in two.threads:
            thread.join()
    assert answers[0] == answers[1]


def test_averaged_halves_are_one_at_the_end_of_a_round(tiny: Tiny, tmp_path: Path) -> None:
    both = team(tiny, tmp_path, 2, train__sharing="averaged", train__round=2, client__rate=1e-2)
    sessions = {name: both.session(name, seed) for seed, name in enumerate(("a", "b"))}
    before = [torch.cat([t.flatten() for t in shared_state(session.model)]) for session in sessions.values()]
    assert not torch.equal(*before)
    both.train(sessions)
    after = [torch.cat([t.flatten() for t in shared_state(session.model)]) for session in sessions.values()]
    assert torch.equal(*after)
    ledger = sessions["a"].ledger
    entry = ledger.entries["up", "Average", "weights"]
    assert (entry.messages, entry.bytes) == (2, 2 * 4 * len(after[0]))


def test_a_client_that_leaves_does_not_hold_up_a_round_and_may_return(tiny: Tiny, tmp_path: Path) -> None:
    both = team(tiny, tmp_path, 2, train__sharing="averaged", train__round=2, train__steps=4)
    leaver = both.session("b")
    features, text = batches(both.recipe, leaver)(0)
    leaver.calibrate(features, text)
    leaver.step(1, 0, True, features, text)
    timer = threading.Timer(1.0, leaver.__exit__, (None, None, None))
    timer.start()
    both.train({"a": both.session("a")})
    assert len(both.order) == 5
    both.train({"b": both.session("b")})
    assert both.order[-4:] == ["b"] * 4


def test_seats_are_counted_and_named(tiny: Tiny, tmp_path: Path) -> None:
    one = team(tiny, tmp_path, 1)
    first = one.session("a")
    with pytest.raises(RefusedError, match=r"train.clients is 1, and others train here: 'a'"):
        one.session("b")
    first.__exit__(None, None, None)
    one.threads[0].join()
    one.session("b").__exit__(None, None, None)


def test_a_server_that_begins_anew_knows_its_clients_again(tiny: Tiny, tmp_path: Path) -> None:
    two = team(tiny, tmp_path, 2, train__steps=4)
    sessions = {name: two.session(name, seed) for seed, name in enumerate("ab")}
    two.train(sessions)
    again = ServerParty(two.party.recipe, str)
    assert again.step == 8
    assert again._known.keys() == {"a", "b"}
    assert again._known["a"].streams[0].mean != again._known["b"].streams[0].mean


def test_rounds() -> None:
    averaging = Averaging(4, patience=5)
    seats = [Seat(name) for name in "abc"]
    for seat in seats:
        averaging.enter(seat)
    told: dict[str, tuple[Tensor, int]] = {}

    def bring(seat: Seat, step: int, value: float) -> None:
        told[seat.name] = averaging.average(seat, step, torch.full((2,), float(value)))

    threads = [threading.Thread(target=bring, args=(seat, 2, i)) for i, seat in enumerate(seats[:2])]
    for thread in threads:
        thread.start()
    with pytest.raises(CodecError, match=r"3 numbers where '[ab]' brought 2"):
        while True:  # once the first has come
            if averaging._brought:
                averaging.average(seats[2], 2, torch.zeros(3))
    assert not told
    averaging.leave(seats[2])
    for thread in threads:
        thread.join()
    assert [(name, mean.tolist(), clients) for name, (mean, clients) in sorted(told.items())] == [
        ("a", [0.5, 0.5], 2),
        ("b", [0.5, 0.5], 2),
    ]
    assert averaging.average(seats[0], 2, torch.ones(2))[0].tolist() == [0.5, 0.5]  # repeated, after a broken link
