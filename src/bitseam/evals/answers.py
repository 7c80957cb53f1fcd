"""Accuracy of short answers, by exact match, through the split."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar

from rich.progress import track
from torch import Tensor

from bitseam.parties.client import ClientSession
from bitseam.parties.limits import QUESTIONS
from bitseam.parties.prompts import Prompter


class Question(Protocol):
    """A row of a data set."""

    @property
    def image(self) -> Path: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def task(self) -> str: ...


Q = TypeVar("Q", bound=Question)


@dataclass
class Score:
    correct: int = 0
    total: int = 0


@dataclass
class Evaluation:
    """Scores by task, and the answer to every row in order."""

    scores: dict[str, Score]
    answers: list[str] = field(default_factory=list)


def evaluate(
    session: ClientSession,
    prompter: Prompter,
    rows: Sequence[Q],
    features: Callable[[Sequence[Path]], Tensor],
    batch: int = QUESTIONS,
    longest: int = 8,
) -> Evaluation:
    """Ask every row's question, greedily, `longest` tokens at the most.

    features: images -> (I, M, Dv).
    """
    scores: defaultdict[str, Score] = defaultdict(Score)
    answers: list[str] = []
    for start in track(range(0, len(rows), batch), description="evaluation"):
        chunk = rows[start : start + batch]
        images = [row.image for row in chunk]
        text = prompter.batch([row.question for row in chunk], images=images)
        shown = features([image for image, _ in groupby(images)])
        tokens = zip(*session.ask(shown, text, longest), strict=True)
        for row, ids in zip(chunk, tokens, strict=True):
            answer = prompter.decode(ids)
            answers.append(answer)
            scores[row.task].total += 1
            scores[row.task].correct += normal(answer) == normal(row.answer)
    return Evaluation(dict(scores), answers)


def normal(answer: str) -> str:
    """An answer without case, outer spaces and closing punctuation."""
    return answer.strip().strip(".!").strip().lower()


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, JASA 1927)."""
    if not total:
        return 0.0, 1.0
    z, p = 1.959964, correct / total
    centre, spread = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
