"""All that can be known of a recipe's rows and images before a run, without a model and without the other side.

Files are read whole, every image is decoded once and every prompt is measured. What was found is remembered in the
cache by a digest of what was looked at, so that the next start is quick.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track

from bitseam import config
from bitseam.console import Terminal
from bitseam.data.assets import cache_folder
from bitseam.data.code import PROMPT_CODE
from bitseam.data.inspection import inspect_images
from bitseam.data.memory import Memory
from bitseam.data.rows import BadRow, Row, digest_of, listed, scan_rows
from bitseam.errors import DataError
from bitseam.text.prompts import Prompter

_CHUNK = 1024  # rows tokenized at a time


@dataclass(frozen=True)
class Survey:
    """train, test: the good rows. bad: the others, and files that are unusable as a whole. contents: of each
    good image digests of its crops, which a feature cache knows them by (`bitseam.data.inspection`)."""

    train: list[Row] = field(default_factory=list)
    test: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    contents: dict[Path, bytes] = field(default_factory=dict)

    def settle(self, policy: str) -> None:
        """Raise DataError with all that is bad, where the policy `data.bad_rows` does not leave it out.

        What is wrong with a file as a whole cannot be left out.
        """
        rows = [bad for bad in self.bad if bad.line]
        if len(rows) < len(self.bad) or (rows and policy == "refuse"):
            remedy = "; mend them, or leave such rows out with data.bad_rows = 'skip'" if rows else ""
            several = f"{len(rows):,} rows cannot be used{remedy}:\n" if len(rows) > 1 else ""
            raise DataError(several + listed(self.bad) + (remedy if not several else ""))


def survey(recipe: config.Recipe, prompter: Prompter | None, training: bool = True) -> Survey:
    """Look at the training file, unless training is False, and at the test file if there is one.

    prompter: None where there is no tokenizer to measure lengths with; the rest is then looked at all the same.
    Raises DataError only where a process that decodes images is killed; all else that is bad is in the survey.
    """
    found, memory = Survey(), Memory(cache_folder() / "checked.sqlite")
    train = [(found.train, recipe.data.train, recipe.train.batch)] if training else []
    test = [(found.test, recipe.data.test, 1)] if recipe.data.test else []
    files = [(good, least, Path(path), *scan_rows(path)) for good, path, least in train + test]
    shown = (row.image for *_, rows, _ in files for row in rows)
    images = inspect_images(shown, memory, recipe.client.crops, recipe.data.workers)
    told: dict[tuple[Path, int], BadRow] = {}  # one file may be for both
    for good, least, path, rows, bad in files:
        readable = [row for row in rows if row.image in images.contents]
        bad += [BadRow(path, row.line, images.faults[row.image]) for row in rows if row.image not in images.contents]
        long = _too_long(readable, prompter, recipe.text, good is found.train, memory) if prompter else {}
        bad += [BadRow(path, readable[i].line, reason) for i, reason in long.items()]
        good += [row for i, row in enumerate(readable) if i not in long]
        if len(good) < least and (not bad or recipe.data.bad_rows == "skip"):
            bad.append(BadRow(path, 0, f"{len(good)} usable rows are fewer than one batch of {least}"))
        for one in sorted(bad, key=lambda one: one.line):
            told.setdefault((path, one.line), one)
    memory.close()
    found.bad.extend(told.values())
    used = {row.image for row in [*found.train, *found.test]}
    found.contents.update((image, content) for image, content in images.contents.items() if image in used)
    return found


def _too_long(
    rows: Sequence[Row], prompter: Prompter, text: config.Text, answered: bool, memory: Memory
) -> dict[int, str]:
    """Places of the rows that the prompter refuses, and why. answered: with their answers, as in training."""
    whole = [PROMPT_CODE, prompter.fingerprint, repr(prompter.template), config.canonical(text), answered]
    whole.append(digest_of((row.question, row.answer) for row in rows))
    key = hashlib.sha256(json.dumps(whole).encode()).digest()
    known = memory.recall([key])
    if known:
        return {int(i): reason for i, reason in json.loads(known[key]).items()}
    most = text.max_tokens - _overhead(prompter, answered)
    doubtful = [i for i, row in enumerate(rows) if not _fits(row, most, answered)]
    found: dict[int, str] = {}
    starts = range(0, len(doubtful), _CHUNK)
    for start in track(starts, "prompts", console=Terminal(stderr=True), disable=len(starts) < 2, transient=True):
        chunk = doubtful[start : start + _CHUNK]
        if _refused([rows[i] for i in chunk], prompter, answered):
            reasons = {i: _refused([rows[i]], prompter, answered) for i in chunk}
            found |= {i: reason for i, reason in reasons.items() if reason}
    memory.keep({key: json.dumps(found).encode()})
    return found


def _refused(rows: Sequence[Row], prompter: Prompter, answered: bool) -> str:
    """What the prompter says against a batch, or nothing."""
    try:
        prompter.batch([row.question for row in rows], [row.answer for row in rows] if answered else None)
    except DataError as error:
        return str(error)
    return ""


def _fits(row: Row, most: float, answered: bool) -> bool:
    """Whether a row cannot be too long, so that it need not be tokenized: a token stands for a character or more of
    ASCII, while other characters may become several."""
    length = len(row.question) + (len(row.answer) if answered else 0)
    return length <= most and row.question.isascii() and row.answer.isascii()


def _overhead(prompter: Prompter, answered: bool) -> float:
    """Tokens of a row beside its question and answer, at most; infinite where a character may take several."""
    lengths = []
    for probe in ("a", "a~1 B" * 4 + "a"):
        try:
            lengths.append(int(prompter.batch([probe], [probe] if answered else None).lengths[0]))
        except DataError:
            return float("inf")
    return lengths[0] if lengths[1] - lengths[0] <= (40 if answered else 20) else float("inf")
