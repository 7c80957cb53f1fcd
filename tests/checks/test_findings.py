"""Checks are made whatever the others found, and all that is wrong is said at once."""

from __future__ import annotations

import pytest

from bitseam.checks.findings import Checks, Finding
from bitseam.errors import CheckError, DataError, ModelError


def fail(error: Exception) -> None:
    raise error


def test_a_check_is_made_whatever_the_others_found() -> None:
    told: list[Finding] = []
    checks = Checks(told.append)
    assert checks.make("rows", lambda: fail(DataError("a.jsonl:3: no answer"))) is None
    assert checks.make("model", lambda: 7, lambda made: f"{made} layers") == 7
    assert [(f.subject, f.verdict, f.text) for f in told] == [
        ("rows", "wrong", "a.jsonl:3: no answer"),
        ("model", "right", "7 layers"),
    ]
    assert told == checks.findings


def test_what_builds_on_a_wrong_thing_is_not_checked() -> None:
    checks = Checks()
    model = checks.make("model", lambda: fail(ModelError("no such folder")))
    assert checks.make("proof", lambda: 1, needs=[model]) is None
    assert [f.verdict for f in checks.findings] == ["wrong", "not checked"]
    with pytest.raises(ModelError, match="no such folder"):  # one fault is raised as itself
        checks.require()


def test_several_faults_are_one_error_with_all_of_them() -> None:
    checks = Checks()
    checks.make("rows", lambda: fail(DataError("a.jsonl:3: no answer")))
    checks.make("model", lambda: fail(ModelError("no such folder")))
    with pytest.raises(CheckError, match=r"2 things are wrong(.|\n)*1\. a\.jsonl:3: no answer\n  2\. no such folder"):
        checks.require()


def test_a_fault_of_the_program_is_not_a_finding() -> None:
    with pytest.raises(ZeroDivisionError):
        Checks().make("sums", lambda: 1 // 0)


def test_nothing_wrong_raises_nothing() -> None:
    checks = Checks()
    checks.make("model", lambda: 7)
    checks.require()
