"""Batches of rows in a seeded order that any micro-batch number can be looked up in.

Questions about one image stay together: that the same picture has another answer when another thing is asked is what
teaches the language model to look where it is told, and the picture crosses once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bitseam.data.features import Features
from bitseam.data.rows import Row
from bitseam.errors import DataError
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter


class Batches:
    """Micro-batch number -> (features (I, M, Dv) of I images, text); each epoch has an order of its own.

    What a number gives depends on nothing that was asked before. Finding its rows takes the same short time at any
    place of an epoch and for any number of rows. ahead: of how many micro-batches that follow `features` is told.
    """

    def __init__(
        self, rows: Sequence[Row], features: Features, prompter: Prompter, batch: int, seed: int, ahead: int = 0
    ) -> None:
        self._order = Order([row.image for row in rows], batch, seed)
        self._rows, self._features, self._prompter, self._ahead = rows, features, prompter, ahead

    def __call__(self, number: int) -> tuple[Tensor, TextBatch]:
        places = self._order(number)
        rows = [self._rows[place] for place in places]
        images = [row.image for row in rows]
        if self._ahead:
            coming = range(number, number + 1 + self._ahead)
            self._features.expect([_distinct([row.image for row in self.rows(n)]) for n in coming])
        text = self._prompter.batch([row.question for row in rows], [row.answer for row in rows], images)
        samples = torch.tensor([group for group, _ in groupby(self._order.groups[places].tolist())])
        return self._features.of(_distinct(images)), replace(text, samples=samples)

    def rows(self, number: int) -> list[Row]:
        """The rows of a micro-batch, in order."""
        return [self._rows[i] for i in self._order(number)]


class Order:
    """Micro-batch number -> places of its rows. An epoch is a permutation of the groups of rows about one image, groups
    numbered as they first appear; its last rows, too few for a batch, are left out.

    groups: of each place.
    """

    def __init__(self, images: Sequence[Path], batch: int, seed: int) -> None:
        if len(images) < batch:
            raise DataError(f"{len(images)} rows are fewer than one batch of {batch}")
        self._number, self._batch, self._seed = len(images) // batch, batch, seed
        groups: dict[Path, int] = {}
        self.groups = np.fromiter((groups.setdefault(image, len(groups)) for image in images), np.int64, len(images))
        self._members = np.argsort(self.groups, kind="stable")
        self._sizes = np.bincount(self.groups)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._background = ThreadPoolExecutor(1, "epoch")
        self._epochs: dict[int, Future[tuple[np.ndarray, np.ndarray]]] = {}
        self._permutation(0)  # so that the first micro-batch need not wait for it

    def __call__(self, number: int) -> list[int]:
        epoch, place = divmod(number, self._number)
        order, ends = self._permutation(epoch)
        start, stop = place * self._batch, (place + 1) * self._batch
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        found = [self._members[self._starts[g] : self._starts[g] + self._sizes[g]] for g in order[first : last + 1]]
        skipped = start - (int(ends[first - 1]) if first else 0)
        return np.concatenate(found)[skipped : skipped + self._batch].tolist()

    def _permutation(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's order of groups, and where in the epoch each ends; the next epoch's is made meanwhile."""
        for soon in (epoch, epoch + 1):
            if soon not in self._epochs:
                self._epochs[soon] = self._background.submit(self._permute, soon)
        for gone in [known for known in self._epochs if not epoch - 1 <= known <= epoch + 1]:
            del self._epochs[gone]
        return self._epochs[epoch].result()

    def _permute(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
        return order, np.cumsum(self._sizes[order])


def _distinct(images: Sequence[Path]) -> tuple[Path, ...]:
    """Neighbours that are equal, once."""
    return tuple(image for image, _ in groupby(images))
