"""Marks for tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bitseam.evals.marks import Marks


def marks(name: str, right: Mapping[int, Mapping[str, str]], questions: str = "the same") -> Marks:
    """An image a question, a different one in each task."""
    images, start = {}, 0
    for task, found in next(iter(right.values())).items():
        images[task] = list(range(start, start + len(found)))
        start += len(found)
    return Marks(name, questions, images, right)


def counted(correct: int, total: int, seed: int = 0) -> str:
    """So many right answers of so many, in an order of chance."""
    order = np.random.default_rng(seed).permutation(total)
    return "".join("1" if place < correct else "0" for place in order)
