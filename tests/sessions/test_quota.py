"""Quotas: what counts, when it ends, and that a restart forgets nothing."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from breaking import Server
from conftest import Tiny, make_recipe
from pairs import batches, train

from bitseam.errors import BitseamError, ConfigError, QuotaError, RefusedError
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.peer import Peer
from bitseam.sessions.quota import Quotas, Used
from bitseam.sessions.server import ServerSession
from bitseam.transport import Quota, memory_pair
from bitseam.wire import VERSION
from bitseam.wire import messages_pb2 as pb

LIMITS = {"a": Quota(bytes=100, steps=2, sessions=2), "b": Quota()}


def test_bytes_are_over_once_more_were_used_than_granted() -> None:
    quotas = Quotas(LIMITS.__getitem__)
    quotas.count("a", bytes=100)
    quotas.require("a")
    quotas.count("a", bytes=1)
    with pytest.raises(QuotaError, match="client 'a' may use 100 bytes, and this would be 101"):
        quotas.require("a")
    quotas.count("b", bytes=10**12)
    quotas.require("b")


def test_a_step_too_many_is_refused_before_it_is_done() -> None:
    quotas = Quotas(LIMITS.__getitem__)
    for _ in range(2):
        quotas.require("a", steps=1)
        quotas.count("a", steps=1)
    quotas.require("a")  # it may still ask
    with pytest.raises(QuotaError, match="may use 2 steps, and this would be 3"):
        quotas.require("a", steps=1)
    quotas.require("b", steps=1)


def test_sessions_count_while_they_last() -> None:
    quotas = Quotas(LIMITS.__getitem__)
    with ExitStack() as open_sessions:
        open_sessions.enter_context(quotas.session("a", 1))
        with pytest.raises(ZeroDivisionError), quotas.session("a", 2):
            raise ZeroDivisionError  # a session that breaks is over, too
        open_sessions.enter_context(quotas.session("a", 3))
        refused = quotas.session("a", 4)
        with pytest.raises(QuotaError, match="may use 2 sessions at once, and this would be 3"), refused:
            pass
        for key in range(9):
            open_sessions.enter_context(quotas.session("b", key))
    with quotas.session("a", 1):
        pass


def test_a_session_that_comes_back_is_not_one_more() -> None:
    quotas = Quotas(lambda name: Quota(sessions=1))
    before = ExitStack()
    before.enter_context(quotas.session("a", "training"))
    with quotas.session("a", "training"):
        before.close()  # missed at last
        with pytest.raises(QuotaError), quotas.session("a", "another"):
            pass
    with quotas.session("a", "another"):
        pass


def test_limits_are_those_of_now() -> None:
    limits = dict(LIMITS)
    quotas = Quotas(limits.__getitem__)
    quotas.count("a", bytes=200)
    limits["a"] = Quota(bytes=300)
    quotas.require("a")


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "server" / "quota.json"
    quotas = Quotas(LIMITS.__getitem__, path)
    with quotas.session("a", 1):
        quotas.count("a", bytes=70, steps=1)
        quotas.count("b", bytes=5)
    again = Quotas(LIMITS.__getitem__, path)
    assert (again.used("a"), again.used("b"), again.used("c")) == (Used(70, 1), Used(5, 0), Used())
    again.count("a", bytes=31)
    with pytest.raises(QuotaError, match="this would be 101"):
        again.require("a")


def test_it_is_kept_while_a_session_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitseam.sessions.quota._SAVE_EVERY", 0)
    quotas = Quotas(LIMITS.__getitem__, tmp_path / "quota.json")
    quotas.count("a", bytes=7)
    assert Quotas(LIMITS.__getitem__, tmp_path / "quota.json").used("a") == Used(7, 0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": {"bytes": -1}}', '{"a": {"steps": 1, "more": 2}}'])
def test_a_file_that_is_not_sound_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "quota.json").write_text(text)
    with pytest.raises(ConfigError, match=r"quota\.json: what clients have used cannot be read; remove it"):
        Quotas(LIMITS.__getitem__, tmp_path / "quota.json")


def test_a_disk_that_is_full_ends_no_session(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    quotas = Quotas(path=tmp_path / "file" / "quota.json")
    with quotas.session("a", 1):
        quotas.count("a", bytes=7)
    assert "quota.json: what clients have used is not kept" in caplog.text


def start(tiny: Tiny, out: Path, **limits: Quota) -> Server:
    """A server for four steps that grants the clients of these names these quotas; client a is at the door."""
    server = Server(make_recipe(tiny, out=str(out), train__steps=4, train__checkpoint_every=1), name="a")
    server.party.quotas = Quotas(lambda name: limits.get(name, Quota()))
    return server


def run(server: Server) -> Ledger:
    """Train to the end; returns the client's ledger."""
    with server.client() as session:
        train(session, server.recipe, batches(server.recipe, session))
    return session.ledger


def test_what_a_client_has_used_is_what_crossed(tiny: Tiny, tmp_path: Path) -> None:
    server = start(tiny, tmp_path)
    ledger = run(server)
    assert server.party.quotas.used("a") == Used(ledger.total().bytes, 4)


@pytest.mark.parametrize(
    ("quota", "refusal"),
    [
        (Quota(steps=2), "client 'a' may use 2 steps, and this would be 3"),
        (Quota(bytes=1_500), "client 'a' may use 1,500 bytes, and this would be "),
        (Quota(sessions=0), "client 'a' may use 0 sessions at once"),
    ],
)
def test_a_client_over_its_quota_is_refused_and_another_goes_on(
    tiny: Tiny, tmp_path: Path, quota: Quota, refusal: str
) -> None:
    server = start(tiny, tmp_path, a=quota)
    with pytest.raises(RefusedError, match=rf"the server refuses \(over quota\): {refusal}"):
        run(server)
    assert isinstance(server.failures.pop(), QuotaError)
    done = server.party.step
    assert done == (quota.steps if quota.steps else done) < 4
    with pytest.raises(RefusedError, match="over quota"):
        run(server)  # nor is it let in again
    server.name = "b"
    run(server)
    assert server.party.step == 4
    assert server.party.quotas.used("b").steps == 4 - done


def test_a_second_session_at_once_is_refused_and_the_first_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    server = start(tiny, tmp_path, a=Quota(sessions=1))

    kept: list[ServerSession] = []

    def ask() -> None:
        ours, theirs = memory_pair("a")
        kept.append(ServerSession(server.party, theirs))

        def serve() -> None:
            with suppress(BitseamError):
                kept[-1].run()
            theirs.close()

        thread = threading.Thread(target=serve)
        thread.start()
        peer = Peer(ours, "client", Ledger([]))
        try:
            peer.exchange(pb.Hello(version=VERSION, purpose=pb.ASK, terms={"none": "alike"}), pb.Welcome)
        finally:
            ours.close()
            thread.join(20)

    with server.client() as session:
        with pytest.raises(RefusedError, match=r"over quota.*may use 1 sessions at once, and this would be 2"):
            ask()
        train(session, server.recipe, batches(server.recipe, session))
    assert server.failures == []
    for _ in range(2):
        with pytest.raises(RefusedError, match="terms differ"):  # let in as far as that
            ask()


def test_a_link_that_breaks_uses_no_session_and_no_step_more(tiny: Tiny, tmp_path: Path) -> None:
    server = start(tiny, tmp_path, a=Quota(sessions=1))
    crossings = iter(range(10**6))
    server.breaks = lambda where: next(crossings) % 9 == 8
    run(server)
    assert server.dialled > 2
    assert server.party.quotas.used("a").steps == 4
