"""What a report's answers show, of two sides: accuracies with their intervals, and the comparison of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bitseam.errors import DataError, printable
from bitseam.evals.answers import wilson
from bitseam.evals.compare import Comparison, Difference, Estimate, accuracy, compare, spread
from bitseam.evals.marks import Marks, unpacked

Report = Mapping[str, Any]
VARIANTS = ("coded", "fp16")


@dataclass(frozen=True)
class Accuracy:
    """Right answers of one side on one task, of all its seeds."""

    correct: int
    total: int
    chance: float
    interval: tuple[float, float]

    @property
    def share(self) -> float:
        return self.correct / max(self.total, 1)

    @property
    def above_chance(self) -> bool:
        return self.interval[0] > self.chance


@dataclass(frozen=True)
class Task:
    """Both sides on one task; `difference` where the report has both sides' answers."""

    name: str
    coded: Accuracy
    fp16: Accuracy
    difference: Difference | None

    @property
    def chance(self) -> str:
        """That the coded side or both are not above chance; empty where the coded side is."""
        if self.coded.above_chance:
            return ""
        return "coded is not above chance" if self.fp16.above_chance else "neither is above chance"


@dataclass(frozen=True)
class Mean:
    """One side's mean of the tasks' accuracies, in points; with its interval where the report has its answers."""

    value: float
    estimate: Estimate | None
    spread: float | None  # standard deviation over seeds


@dataclass(frozen=True)
class Outcome:
    """What the report's answers show; `comparison` where it has them, and not only counts of right ones."""

    tasks: list[Task]
    means: dict[str, Mean]
    comparison: Comparison | None


def outcome_of(report: Report) -> Outcome:
    """Raises DataError where the report's marks and counts contradict each other, or sides answered other questions."""
    sides = unpacked(report["marks"]) if "marks" in report else {}
    _agree(sides, report["tasks"])
    found = _from_marks(json.dumps(report["marks"])) if sides else None
    tasks = []
    for name, task in report["tasks"].items():
        coded, fp16 = (
            Accuracy(task[v]["correct"], task[v]["total"], task["chance"], _interval(found, v, name, task[v]))
            for v in VARIANTS
        )
        tasks.append(Task(name, coded, fp16, found.comparison.tasks[name] if found else None))
    means = {
        v: Mean(
            sum(100 * getattr(task, v).share for task in tasks) / len(tasks),
            found.accuracies[v, None] if found else None,
            spread(sides[v]) if found else None,
        )
        for v in VARIANTS
    }
    return Outcome(tasks, means, found.comparison if found else None)


@dataclass(frozen=True)
class _Found:
    comparison: Comparison
    accuracies: dict[tuple[str, str | None], Estimate]  # of (side, task); None: of the mean of the tasks


@lru_cache(maxsize=2)
def _from_marks(kept: str) -> _Found:
    """All that marks, as JSON, show: seconds of drawing, which the tables and the page of one report share."""
    sides = unpacked(json.loads(kept))
    accuracies: dict[tuple[str, str | None], Estimate] = {}
    for name, side in sides.items():
        accuracies[name, None] = accuracy(side, list(side.images))
        if len(side.seeds) > 1:
            accuracies |= {(name, task): accuracy(side, [task]) for task in side.images}
    return _Found(compare(*(sides[v] for v in VARIANTS)), accuracies)


def _interval(found: _Found | None, side: str, task: str, counts: Mapping[str, int]) -> tuple[float, float]:
    """Of an accuracy, in shares: Wilson's where one model answered, over seeds and images where several did."""
    if found and (estimate := found.accuracies.get((side, task))):
        return estimate.low / 100, estimate.high / 100
    return wilson(counts["correct"], counts["total"])


def _agree(sides: Mapping[str, Marks], tasks: Report) -> None:
    """Raise DataError where marks are not those that were counted."""
    if sides and (found := set(sides)) != set(VARIANTS):
        told = ", ".join(map(printable, sorted(found)))
        raise DataError(f"report.json: `marks` are of {told}; they must be of {' and '.join(VARIANTS)}")
    for name, side in sides.items():
        if side.images.keys() != tasks.keys():
            told = ", ".join(map(printable, sorted(side.images.keys() ^ tasks.keys())))
            raise DataError(f"report.json: only one of `marks` and `tasks` has {told}")
        for task in tasks:
            marks, counts = side.of(task), tasks[task][name]
            if (marks.sum(), marks.size) != (counts["correct"], counts["total"]):
                raise DataError(
                    f"report.json: on {printable(task)}, {name} has {counts['correct']} right answers of "
                    f"{counts['total']} in `tasks`, and {marks.sum():.0f} of {marks.size} in `marks`"
                )
