"""What is known of each mutant: outcomes that outlive a stop, mutants listed as equivalent, and rows of results."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import subprocess
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from baseline import ROOT, SOURCE
from mutations import Mutant

RESULTS = ROOT / "docs" / "results" / "mutants.json"
EQUIVALENT = Path(__file__).parent / "equivalent.toml"
Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Outcome:
    """`by`: the test that killed it, "timeout", "crash" or "at import"; "survived" where none did."""

    by: str
    digest: str  # of what the outcome rests on

    @property
    def killed(self) -> bool:
        return self.by != "survived"


class Ledger:
    """Outcomes of one room, a line each in a file that only grows; the last of a mutant holds."""

    def __init__(self, path: Path, tests: str) -> None:
        """tests: digest of all tests of the room."""
        self.path = path
        self.same = equivalent(path.parent.name)
        self.tests = tests
        self.outcomes: dict[Key, Outcome] = {}
        self.read()

    def read(self) -> None:
        """Take in what this process or others have added."""
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            raw = json.loads(line)
            self.outcomes[tuple(raw["key"])] = Outcome(raw["by"], raw["digest"])

    def add(self, mutant: Mutant, by: str) -> None:
        outcome = self.outcomes[mutant.key] = Outcome(by, self._digest(mutant, by))
        with self.path.open("a") as file:  # one write of one line: several processes may add
            file.write(json.dumps({"key": mutant.key, "by": outcome.by, "digest": outcome.digest}) + "\n")

    def of(self, mutant: Mutant) -> Outcome | None:
        """The outcome, if what it rests on is still the same; no test will kill one that is listed as equivalent."""
        outcome = self.outcomes.get(mutant.key)
        if outcome is not None and not outcome.killed and mutant.key[:4] in self.same:
            return outcome
        if outcome is None or outcome.digest != self._digest(mutant, outcome.by):
            return None
        return outcome

    def _digest(self, mutant: Mutant, by: str) -> str:
        """Of the function (the statement, outside of functions), and of the file of the test that killed it; of all
        tests where none did."""
        test = ROOT / by.partition("::")[0]
        rests_on = digest(test) if "::" in by and test.exists() else self.tests if by == "survived" else ""
        text = _sources(mutant.file)[mutant.function] if mutant.live else mutant.was
        return hashlib.sha256(f"{text}{rests_on}".encode()).hexdigest()[:16]


@cache
def digest(*paths: Path) -> str:
    """Of the contents of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:16]


@cache
def _sources(file: str) -> dict[str, str]:
    """The text of each function and class of a file by its qualified name."""
    found: dict[str, str] = {}

    def walk(node: ast.AST, name: str) -> None:
        for part in ast.iter_child_nodes(node):
            inner = name
            if isinstance(part, ast.FunctionDef | ast.ClassDef):
                inner = f"{name}.{part.name}".strip(".")
                found[inner] = found.get(inner, "") + ast.unparse(part)
            walk(part, inner)

    walk(ast.parse((SOURCE / file).read_text()), "")
    return found


def equivalent(room: str) -> dict[tuple[str, str, str, str], str]:
    """Mutants listed as the same program, with the reason of each."""
    entries = tomllib.loads(EQUIVALENT.read_text())["equivalent"] if EQUIVALENT.exists() else []
    return {
        (entry["file"], entry["function"], entry["was"], now): entry["reason"]
        for entry in entries
        if entry["file"].startswith(f"{room}/")
        for now in ([entry["now"]] if isinstance(entry["now"], str) else entry["now"])
    }


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, by a random sample (Clopper and Pearson, 1934)."""

    def at_least(least: int, share: float) -> float:
        ways = (
            math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(least, total + 1)
        )
        odds = (k * math.log(share) + (total - k) * math.log1p(-share) for k in range(least, total + 1))
        return math.fsum(math.exp(way + chance) for way, chance in zip(ways, odds, strict=True))

    def solved(least: int, chance: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least(least, middle) < chance else (low, middle)
        return low

    return solved(count, 0.025) if count else 0.0, solved(count + 1, 0.975) if count < total else 1.0


def row(room: str, mutants: Sequence[Mutant], ledger: Ledger) -> dict[str, object]:
    """Of the results: only what was run counts as killed or equivalent.

    sampled: where not all were run, which is a random sample, how many; interval: that of the share of mutants killed,
    equivalent ones left out, in 95 of 100 samples.
    """
    same = equivalent(room)
    outcomes = {mutant: outcome for mutant in mutants if (outcome := ledger.of(mutant)) is not None}
    kinds = Counter(
        "killed" if outcome.killed else "equivalent" if mutant.key[:4] in same else "survived"
        for mutant, outcome in outcomes.items()
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    counts = {kind: kinds[kind] for kind in ("killed", "equivalent", "survived")}
    row: dict[str, object] = {"room": room, "mutants": len(mutants), "run": len(outcomes), **counts}
    if len(outcomes) < len(mutants):
        row["sampled"] = f"{len(outcomes)} of {len(mutants)}"
        interval = exact_interval(kinds["killed"], kinds["killed"] + kinds["survived"])
        row["interval"] = [round(end, 3) for end in interval]
    return row | {"commit": commit.strip()}


def write_row(new: dict[str, object]) -> None:
    """Put a room's row into the results, in the place of its last."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = [new if row["room"] == new["room"] else row for row in rows]
    rows += [new] if new not in rows else []
    RESULTS.write_text("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n")
