"""Quotas: what counts, when it ends, and that a restart forgets nothing."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from bitseam.errors import ConfigError, QuotaError
from bitseam.parties.quota import Quotas, Used
from bitseam.transport import Quota

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
    monkeypatch.setattr("bitseam.parties.quota._SAVE_EVERY", 0)
    quotas = Quotas(LIMITS.__getitem__, tmp_path / "quota.json")
    quotas.count("a", bytes=7)
    assert Quotas(LIMITS.__getitem__, tmp_path / "quota.json").used("a") == Used(7, 0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": {"bytes": -1}}', '{"a": {"steps": 1, "more": 2}}'])
def test_a_file_that_is_not_sound_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "quota.json").write_text(text)
    with pytest.raises(ConfigError, match=r"quota\.json: what clients have used cannot be read; remove it"):
        Quotas(LIMITS.__getitem__, tmp_path / "quota.json")
