"""The harness itself: the mutants of a small source written out by hand, and outcomes of mutants that are known."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ledger import exact_interval
from mutations import mutants_of, mutated

SOURCE = '''"""Docstring."""
import math
LIMIT = 3
TABLE = {"a": 1, "b": 2}
NAMES = dict[str, int]


class Box:
    size: int = 4

    def __repr__(self) -> str:
        return "box" + "es"

    @property
    def open(self) -> bool:
        """Docstring."""
        return self.size > LIMIT and not self.locked


def take(count: int, most: float = 0.5, *, kind: str = "all kinds") -> list[int]:
    if count < 0:
        raise ValueError(f"{count + 1} is too few")
    log.info("taken", count)
    require(count != 7, "seven")
    for name in ("x", "y"):
        store(name, count, deep=True)
    with guard():
        count += 1
    rest = zip(kind, count.reshape(-1), strict=True)
    return [value for value in rest[1:] if flag]
'''
EXPECTED = {
    ("", "LIMIT = 3", "LIMIT = 4"),
    ("", "TABLE = {'a': 1, 'b': 2}", "TABLE = {'b': 2}"),
    ("", "TABLE = {'a': 1, 'b': 2}", "TABLE = {'a': 1}"),
    ("", "TABLE = {'a': 1, 'b': 2}", "TABLE = {'mutated': 1, 'b': 2}"),
    ("", "TABLE = {'a': 1, 'b': 2}", "TABLE = {'a': 1, 'mutated': 2}"),
    ("", "TABLE = {'a': 1, 'b': 2}", "TABLE = {'a': 2, 'b': 2}"),
    ("", "TABLE = {'a': 1, 'b': 2}", "TABLE = {'a': 1, 'b': 3}"),
    ("Box", "size: int = 4", "size: int = 5"),
    *{
        ("Box.open", "return self.size > LIMIT and (not self.locked)", now)
        for now in (
            "return None",
            "return self.size > LIMIT or not self.locked",
            "return self.size >= LIMIT and (not self.locked)",
            "return self.size <= LIMIT and (not self.locked)",
            "return self.size > LIMIT and self.locked",
        )
    },
    (
        "",
        "def take(count: int, most: float=0.5, *, kind: str='all kinds') -> list[int]:",
        "def take(count: int, most: float=1.0, *, kind: str='all kinds') -> list[int]:",
    ),
    ("take", "if count < 0:", "if count <= 0:"),
    ("take", "if count < 0:", "if count >= 0:"),
    ("take", "if count < 0:", "if count < 1:"),
    ("take", "raise ValueError(f'{count + 1} is too few')", "pass"),
    ("take", "require(count != 7, 'seven')", "pass"),
    ("take", "require(count != 7, 'seven')", "require(count == 7, 'seven')"),
    ("take", "require(count != 7, 'seven')", "require(count != 8, 'seven')"),
    ("take", "for name in ('x', 'y'):", "for name in ('y',):"),
    ("take", "for name in ('x', 'y'):", "for name in ('x',):"),
    ("take", "for name in ('x', 'y'):", "for name in ('mutated', 'y'):"),
    ("take", "for name in ('x', 'y'):", "for name in ('x', 'mutated'):"),
    *{
        ("take", "store(name, count, deep=True)", now)
        for now in (
            "pass",
            "store(count, name, deep=True)",
            "store(name, deep=True)",
            "store(name, count)",
            "store(name, count, deep=False)",
        )
    },
    ("take", "with guard():", "if True:"),
    ("take", "count += 1", "pass"),
    ("take", "count += 1", "count -= 1"),
    ("take", "count += 1", "count += 2"),
    *{
        ("take", "rest = zip(kind, count.reshape(-1), strict=True)", now)
        for now in ("rest = zip(kind, strict=True)", "rest = zip(count.reshape(-1), kind, strict=True)")
    },
    *{
        ("take", "return [value for value in rest[1:] if flag]", now)
        for now in (
            "return None",
            "return [value for value in rest[:] if flag]",
            "return [value for value in rest[2:] if flag]",
            "return [value for value in rest[1:] if not flag]",
        )
    },
}


@pytest.mark.parametrize(
    ("count", "total", "interval"),
    [(0, 10, (0, 0.3085)), (10, 10, (0.6915, 1)), (5, 10, (0.1871, 0.8129)), (380, 400, (0.9238, 0.9692))],
)
def test_intervals_are_those_of_tables(count: int, total: int, interval: tuple[float, float]) -> None:
    assert exact_interval(count, total) == pytest.approx(interval, abs=1e-4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    return path


def test_every_mutant_of_a_small_source(source: Path) -> None:
    found = mutants_of(source, "source.py")
    assert {(mutant.function, mutant.was, mutant.now) for mutant in found} == EXPECTED
    assert len(found) == len(EXPECTED)


def test_a_mutated_tree_has_its_one_change(source: Path) -> None:
    right = ast.unparse(ast.parse(SOURCE))
    texts = {ast.unparse(mutated(source, mutant.number)) for mutant in mutants_of(source, "source.py")}
    assert right not in texts
    assert len(texts) == len(EXPECTED)
    for text in texts:
        compile(text, "mutant", "exec")


def test_equal_mutants_are_numbered_and_lines_are_those_of_the_statement(tmp_path: Path) -> None:
    path = tmp_path / "twice.py"
    path.write_text("def f():\n    g(\n        1)\n    g(1)\n    if (h(1) or\n        x):\n        pass\n")
    numbered = [(m.now, m.nth, m.lines) for m in mutants_of(path, "twice.py") if m.now == "g(2)"]
    assert numbered == [("g(2)", 0, (2, 3)), ("g(2)", 1, (4, 4))]
    assert {m.lines for m in mutants_of(path, "twice.py") if m.was.startswith("if")} == {(5, 6)}


PACKAGE = {
    "src/bitseam/__init__.py": "",
    "src/bitseam/wire/__init__.py": "",
    "src/bitseam/wire/one.py": (
        "import functools\n"
        "LIMIT = 5\n"
        "UNUSED = 5\n"
        "class Thing:\n"
        "    def __init__(self):\n"
        "        self.kind = 'thing'\n"
        "class Box(Thing):\n"
        "    def __init__(self, size):\n"
        "        super().__init__()\n"
        "        self.size = size\n"
        "    @property\n"
        "    @functools.cache\n"
        "    def full(self):\n"
        "        return self.size >= LIMIT\n"
        "def half(x):\n"
        "    while x > LIMIT:\n"
        "        x -= 1\n"
        "    return x\n"
        "def early(x):\n"
        "    return x * 2\n"
        "TEN = early(5)\n"
        "def untested(x):\n"
        "    return x\n"
    ),
    "tests/wire/test_one.py": (
        "from bitseam.wire.one import TEN, Box, half\n"
        "def test_full():\n"
        "    assert Box(5).full and not Box(4).full and Box(5).kind == 'thing'\n"
        "def test_half():\n"
        "    assert half(8) == 5\n"
        "def test_ten():\n"
        "    assert TEN == 10\n"
        "def test_spoilt_by_the_harness():\n"
        "    import sys\n"
        "    assert Box(5).full and 'coverage' in sys.modules and sys.gettrace() is not None\n"
    ),
    "pytest.ini": "[pytest]\naddopts = -n 2\ntimeout = 300\n",
}
OUTCOMES = {
    ("", "LIMIT = 5", "LIMIT = 6"): "test_",
    ("", "UNUSED = 5", "UNUSED = 6"): "survived",
    ("Thing.__init__", "self.kind = 'thing'", "pass"): "test_full",
    ("Thing.__init__", "self.kind = 'thing'", "self.kind = 'mutated'"): "test_full",
    ("Box.__init__", "super().__init__()", "pass"): "test_full",
    ("Box.__init__", "self.size = size", "pass"): "test_full",
    ("Box", "@property\n@functools.cache\ndef full(self):", "@property\ndef full(self):"): "survived",
    ("Box.full", "return self.size >= LIMIT", "return None"): "test_full",
    ("Box.full", "return self.size >= LIMIT", "return self.size > LIMIT"): "test_full",
    ("Box.full", "return self.size >= LIMIT", "return self.size < LIMIT"): "test_full",
    ("half", "while x > LIMIT:", "while x >= LIMIT:"): "test_half",
    ("half", "while x > LIMIT:", "while x <= LIMIT:"): "test_half",
    ("half", "x -= 1", "x += 1"): "timeout",
    ("half", "x -= 1", "pass"): "timeout",
    ("half", "x -= 1", "x -= 2"): "test_half",
    ("half", "return x", "return None"): "test_half",
    ("early", "return x * 2", "return None"): "test_ten",
    ("early", "return x * 2", "return x / 2"): "test_ten",
    ("early", "return x * 2", "return x * 3"): "test_ten",
    ("", "TEN = early(5)", "TEN = early(6)"): "test_ten",
    ("untested", "return x", "return None"): "survived",
}


@pytest.mark.slow
def test_a_whole_campaign_stops_and_goes_on(tmp_path: Path) -> None:
    here = Path(__file__).parent
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "tests" / "mutants").mkdir()
    for path in here.glob("*.py"):
        if path != Path(__file__):
            (tmp_path / "tests" / "mutants" / path.name).write_text(path.read_text())
    entry = '[[equivalent]]\nfile = "wire/one.py"\nfunction = ""\nwas = "{0} = 5"\nnow = "{0} = 6"\nreason = "-"\n'
    listed = "".join(entry.format(name) for name in ("UNUSED", "LIMIT"))
    (tmp_path / "tests" / "mutants" / "equivalent.toml").write_text(listed)
    command = [sys.executable, tmp_path / "tests" / "mutants" / "campaign.py", "wire", "--jobs", "2"]

    def campaign(*more: str) -> dict[str, object]:
        subprocess.run([*command, *more], check=True, env=os.environ | {"PYTHONPATH": "src"}, timeout=200)
        return json.loads((tmp_path / "docs" / "results" / "mutants.json").read_text())[0]

    assert campaign("--minutes", "0")["run"] == 0
    row = campaign()
    lines = (tmp_path / "runs" / "mutants" / "wire" / "outcomes.jsonl").read_text().splitlines()
    outcomes = {tuple(raw["key"][1:4]): raw["by"] for raw in map(json.loads, lines)}
    assert len(lines) == len(outcomes) == len(OUTCOMES)
    for key, due in OUTCOMES.items():
        assert due in outcomes[key], key
    survived = sum(by == "survived" for by in OUTCOMES.values())
    assert row == {
        "room": "wire",
        "mutants": len(OUTCOMES),
        "run": len(OUTCOMES),
        "killed": len(OUTCOMES) - survived,
        "equivalent": 1,
        "survived": survived - 1,
        "commit": "",
    }
    told = (tmp_path / "runs" / "mutants" / "wire" / "survivors.txt").read_text()
    assert "listed as equivalent, but was killed: wire/one.py |  | LIMIT = 5 | LIMIT = 6" in told
    assert "wire/one.py:23 untested  (no test runs it)\n  - return x\n  + return None" in told
    # After a change of one function, only its own mutants are run again.
    source = tmp_path / "src" / "bitseam" / "wire" / "one.py"
    source.write_text(source.read_text().replace("x * 2", "x + x"))
    assert campaign("--minutes", "0")["run"] == len(OUTCOMES) - len([key for key in OUTCOMES if key[0] == "early"])
