"""Which questions a model answered rightly: what two models are compared by.

A mark is `1` for a right answer and `0` for a wrong one. Marks are kept in JSON as one string for each seed and task,
in the order of the test file:

    {"questions": "sha256 of the questions",
     "images": {task: "0 1 1 2"},                    the number of each question's image
     "right": {side: {seed: {task: "0110"}}}}
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitseam.errors import DataError, printable
from bitseam.evals.answers import Question, normal


@dataclass(frozen=True)
class Marks:
    """The marks of one side's models, one model for each seed.

    name: of the side, for messages, as "coded".
    questions: a digest that is equal for the same questions in the same order.
    images: task -> the number of each question's image; questions about one image have one number, in all tasks.
    right: seed -> task -> a string of 0 and 1, one for each question.
    Raises DataError, with side, seed and task, where strings and questions do not fit each other.
    """

    name: str
    questions: str
    images: Mapping[str, Sequence[int]]
    right: Mapping[int, Mapping[str, str]]

    def __post_init__(self) -> None:
        if not self.right or not self.images or not all(self.images.values()):
            raise DataError(f"the marks of {printable(self.name)} hold no seed, no task or a task without questions")
        for seed, tasks in self.right.items():
            of = f"the marks of {printable(self.name)} at seed {seed}"
            if tasks.keys() != self.images.keys():
                raise DataError(f"{of} are of the tasks {_listed(tasks)}, and its questions of {_listed(self.images)}")
            for task, marks in tasks.items():
                if len(marks) != len(self.images[task]) or set(marks) - {"0", "1"}:
                    raise DataError(
                        f"{of}: task {printable(task)} has {len(self.images[task])} questions, and its marks must be "
                        f"as many characters 0 or 1; they are {len(marks)} characters"
                    )

    @property
    def seeds(self) -> list[int]:
        return sorted(self.right)

    def at(self, seeds: Sequence[int]) -> Marks:
        """The same of these seeds alone."""
        return replace(self, right={seed: self.right[seed] for seed in seeds})

    def of(self, task: str) -> NDArray[np.float64]:
        """The marks of a task, (seeds, questions), seeds in ascending order."""
        return np.array([[int(mark) for mark in self.right[seed][task]] for seed in self.seeds], float)


def mark(name: str, seed: int, rows: Sequence[Question], answers: Sequence[str]) -> Marks:
    """The marks of one model's answers to these rows, given in the rows' order.

    Raises DataError where there are not as many answers as rows.
    """
    if len(rows) != len(answers):
        raise DataError(f"{printable(name)}, seed {seed}: {len(answers)} answers to {len(rows)} questions")
    numbers = {image: number for number, image in enumerate(dict.fromkeys(row.image for row in rows))}
    images: defaultdict[str, list[int]] = defaultdict(list)
    right: defaultdict[str, str] = defaultdict(str)
    for row, answer in zip(rows, answers, strict=True):
        images[row.task].append(numbers[row.image])
        right[row.task] += "1" if normal(answer) == normal(row.answer) else "0"
    told = [[row.task, row.question, row.answer, row.image.name] for row in rows]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return Marks(name, digest, dict(images), {seed: dict(right)})


def joined(runs: Sequence[Marks]) -> Marks:
    """The marks of one side's runs at several seeds as one.

    Raises DataError where questions differ or a seed is there twice.
    """
    for run in runs[1:]:
        same_questions(runs[0], run)
    right = {seed: tasks for run in runs for seed, tasks in run.right.items()}
    if len(right) != sum(len(run.right) for run in runs):
        raise DataError(f"the marks of {printable(runs[0].name)} have a seed twice")
    return Marks(runs[0].name, runs[0].questions, runs[0].images, right)


def same_questions(a: Marks, b: Marks) -> None:
    """Raise DataError, with the task where it shows, unless both answered the same questions in the same order."""
    sides = f"{printable(a.name)} and {printable(b.name)}"
    if a.images.keys() != b.images.keys():
        raise DataError(f"{sides} answered different tasks: {_listed(a.images)}, and {_listed(b.images)}")
    for task in a.images:
        if (one := len(a.images[task])) != (other := len(b.images[task])):
            raise DataError(f"{sides} answered different questions: {one} and {other} of task {printable(task)}")
    if a.questions != b.questions or any(list(a.images[task]) != list(b.images[task]) for task in a.images):
        raise DataError(f"{sides} answered different questions: as many in each task, but not the same or in the order")


def packed(sides: Sequence[Marks]) -> dict[str, Any]:
    """The marks of sides with the same questions, as JSON keeps them. Raises DataError where questions differ."""
    for side in sides[1:]:
        same_questions(sides[0], side)
    return {
        "questions": sides[0].questions,
        "images": {task: " ".join(map(str, numbers)) for task, numbers in sides[0].images.items()},
        "right": {side.name: {str(seed): dict(side.right[seed]) for seed in side.seeds} for side in sides},
    }


def unpacked(kept: Mapping[str, Any]) -> dict[str, Marks]:
    """Side -> marks, of what `packed` gave. Raises DataError where it is damaged."""
    try:
        images = {task: [int(number) for number in numbers.split()] for task, numbers in kept["images"].items()}
        return {
            side: Marks(side, kept["questions"], images, {int(seed): tasks for seed, tasks in seeds.items()})
            for side, seeds in kept["right"].items()
        }
    except (KeyError, ValueError, AttributeError) as fault:
        raise DataError(f"marks that were kept cannot be read: {printable(str(fault))}; write them anew") from fault


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(printable(name) for name in names)
