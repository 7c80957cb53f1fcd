"""Batches of rows in a seeded order that any micro-batch number can be looked up in.

Questions about one image stay together: that the same picture has another answer when another thing is asked is what
teaches the language model to look where it is told, and the picture crosses once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from torch import Tensor

from bitseam.data.features import Features
from bitseam.data.rows import Row
from bitseam.errors import DataError
from bitseam.parties.prompts import Prompter
from bitseam.parties.text import TextBatch


class Batches:
    """Micro-batch number -> (features (I, M, Dv) of I images, text); each epoch has an order of its own. Stateless."""

    def __init__(self, rows: Sequence[Row], features: Features, prompter: Prompter, batch: int, seed: int) -> None:
        if len(rows) < batch:
            raise DataError(f"{len(rows)} rows are fewer than one batch of {batch}")
        self._features, self._prompter = features, prompter
        groups: dict[Path, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.image, []).append(row)
        self._groups, self._number = list(groups.values()), len(rows) // batch
        self._batch, self._seed = batch, seed

    def __call__(self, number: int) -> tuple[Tensor, TextBatch]:
        epoch, place = divmod(number, self._number)
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._groups))
        shuffled = (row for group in order for row in self._groups[group])
        rows = list(islice(shuffled, place * self._batch, (place + 1) * self._batch))
        images = [row.image for row in rows]
        text = self._prompter.batch([row.question for row in rows], [row.answer for row in rows], images)
        return self._features.of([image for image, _ in groupby(images)]), text
