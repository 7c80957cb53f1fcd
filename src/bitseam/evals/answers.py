"""Accuracy of short answers, by exact match, through the split."""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar

from rich.progress import track
from torch import Tensor

from bitseam import config
from bitseam.console import Terminal
from bitseam.errors import DataError, printable
from bitseam.sessions.client import ClientSession
from bitseam.sessions.limits import QUESTIONS
from bitseam.text.prompts import Prompter

_SIGNS = frozenset("%‰‱٪#&@*/\\'\"†‡§¶·•\u2032\u2033\u2034")  # stand with numbers and names, and are no punctuation


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

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


@dataclass
class Evaluation:
    """Scores by task, and the answer to every row in order.

    beyond: how many right answers have more tokens than an answer was given room for.
    """

    scores: dict[str, Score]
    answers: list[str] = field(default_factory=list)
    beyond: int = 0


def evaluate(
    session: ClientSession,
    prompter: Prompter,
    rows: Sequence[Q],
    features: Callable[[Sequence[Path]], Tensor],
    batch: int = QUESTIONS,
    longest: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Ask every row's question, greedily.

    features: images -> (I, M, Dv). longest: tokens of an answer, its end among them; by default as many as the longest
    right answer has. progress: with a bar.
    """
    lengths = [len(prompter.answer(row.answer)) for row in rows]
    room = longest or max(lengths)
    scores: defaultdict[str, Score] = defaultdict(Score)
    answers: list[str] = []
    starts = range(0, len(rows), batch)
    for start in track(starts, description="evaluation", console=Terminal(), disable=not progress):
        chunk = rows[start : start + batch]
        images = [row.image for row in chunk]
        text = prompter.batch([row.question for row in chunk], images=images)
        shown = features([image for image, _ in groupby(images)])
        tokens = zip(*session.ask(shown, text, room), strict=True)
        for row, ids in zip(chunk, tokens, strict=True):
            answer = prompter.decode(ids)
            answers.append(answer)
            scores[row.task].total += 1
            scores[row.task].correct += normal(answer) == normal(row.answer)
    return Evaluation(dict(scores), answers, sum(length > room for length in lengths))


def answer_room(prompter: Prompter, rows: Sequence[Question], text: config.Text) -> int:
    """Tokens to let an answer have: text.max_answer_tokens, or as many as the longest right answer has with its end.

    Raises DataError for one that is longer than the server answers.
    """
    if text.max_answer_tokens is not None:
        return text.max_answer_tokens
    longest, row = max(((len(prompter.answer(row.answer)), row) for row in rows), key=lambda pair: pair[0])
    if longest > (most := text.most_new_tokens):
        raise DataError(
            f"data.test: the answer {printable(row.answer, 80)!r} has {longest} tokens, and the server gives {most} at "
            f"the most: set text.max_answer_tokens = {longest} on both sides"
        )
    return longest


def normal(answer: str) -> str:
    """An answer as it is compared: equal text of Unicode, without case, quotes or brackets around it, spaces beyond
    one, and punctuation at its ends.

    Less than SQuAD's and VQA's scripts do: articles, and punctuation inside, stay, as do signs of numbers ("-1", "3.5",
    "50%"). What is punctuation alone stays as it is.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", answer).casefold())
    whole = text = " ".join(folded.split())
    while True:
        before = text
        while text and _closes(text[-1]):
            text = text[:-1].rstrip()
        while text and _closes(text[0]) and not text[1:2].isdigit():
            text = text[1:].lstrip()
        if len(text) > 1 and _encloses(text[0], text[-1]):
            text = text[1:-1].strip()
        if text == before:
            return text or whole


def _closes(character: str) -> bool:
    """Whether it is punctuation of sentences, in any script: Unicode calls that "other"."""
    return unicodedata.category(character) == "Po" and unicodedata.normalize("NFKC", character) not in _SIGNS


def _encloses(first: str, last: str) -> bool:
    """Whether they are quotes, or an opening and a closing bracket."""
    categories = unicodedata.category(first), unicodedata.category(last)
    return (_quotes(first) and _quotes(last)) or categories == ("Ps", "Pe")


def _quotes(character: str) -> bool:
    name = unicodedata.name(character, "")
    return character in "'`" or "QUOTATION MARK" in name or "CORNER BRACKET" in name


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, JASA 1927)."""
    if not total:
        return 0.0, 1.0
    z, p = 1.959964, correct / total
    centre, spread = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
