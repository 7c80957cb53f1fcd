"""docs/results/reports.json: every situation of the bug reports has a test that exists, and a verdict."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = json.loads((ROOT / "docs" / "results" / "reports.json").read_text())
IDS = [f"{letter}{n}" for letter, last in (("D", 17), ("M", 19), ("O", 14)) for n in range(1, last + 1)]


def test_every_report_is_told_once() -> None:
    assert [row["id"] for row in ROWS] == IDS
    assert all(row.keys() == {"id", "test", "verdict", "siblings"} for row in ROWS)
    assert {row["verdict"] for row in ROWS} <= {"right", "refused by name", "not done"}


def test_every_test_named_is_there_and_bears_the_number() -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for row in ROWS:
        if row["verdict"] == "not done":
            continue
        file, _, name = row["test"].partition("::")
        assert re.match(rf"test_{row['id']}(_|$)", name), row
        assert re.search(rf"^def {name}\(", sources[file], re.MULTILINE), row
