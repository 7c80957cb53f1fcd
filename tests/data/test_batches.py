"""The order of batches: that of a seed, whatever is asked first; found in the same time at any place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tiny, make_recipe

from bitseam.data.batches import Batches, Order
from bitseam.data.rows import Row
from bitseam.errors import DataError
from bitseam.text.prompts import Prompter


class Recorder:
    """Features that only tell what they were asked for."""

    ahead = 0

    def __init__(self) -> None:
        self.asked: list[tuple[Path, ...]] = []
        self.expected: list[list[tuple[Path, ...]]] = []

    def expect(self, coming: Sequence[tuple[Path, ...]]) -> None:
        self.expected.append(list(coming))

    def of(self, images: Sequence[Path]) -> torch.Tensor:
        self.asked.append(tuple(images))
        return torch.zeros(len(images), 4, 6)


def rows_about(images: Sequence[int]) -> list[Row]:
    return [Row(Path(f"{image}.png"), f"dog {i} ?", "yes") for i, image in enumerate(images)]


def by_walking(rows: Sequence[Row], batch: int, seed: int, number: int) -> list[Row]:
    """A micro-batch as it was found before it was looked up: all rows in their order, as far as the batch."""
    epoch, place = divmod(number, len(rows) // batch)
    groups: dict[Path, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.image, []).append(row)
    members = list(groups.values())
    order = np.random.default_rng([seed, epoch]).permutation(len(members))
    shuffled = (row for group in order for row in members[group])
    return list(islice(shuffled, place * batch, (place + 1) * batch))


@pytest.mark.parametrize(("count", "images", "batch"), [(97, 20, 8), (50, 50, 7), (30, 1, 4), (64, 9, 64), (33, 5, 1)])
def test_the_order_of_a_seed_is_what_it_always_was(count: int, images: int, batch: int) -> None:
    rows = rows_about(np.random.default_rng(count).integers(0, images, count).tolist())
    order = Order([row.image for row in rows], batch, seed=3)
    numbers = np.random.default_rng(0).permutation(3 * (count // batch) + 2).tolist()
    for number in [*numbers, *sorted(numbers)]:
        assert [rows[i] for i in order(number)] == by_walking(rows, batch, 3, number)


def test_an_epoch_has_each_row_once_and_images_stay_together(tiny: Tiny) -> None:
    rows = rows_about([i % 8 for i in range(32)])  # scattered over the file
    features = Recorder()
    batches = Batches(rows, features, Prompter(make_recipe(tiny).text), 8, seed=3)
    seen: list[Row] = []
    for number in range(4):
        got, text = batches(number)
        assert len(got) == 2
        assert text.image.tolist() == [0] * 4 + [1] * 4
        seen += batches.rows(number)
    assert sorted(seen, key=rows.index) == rows
    assert [images for images, _ in groupby(features.asked)] == features.asked


def test_features_are_told_of_what_comes(tiny: Tiny) -> None:
    rows = rows_about([i // 2 for i in range(12)])
    features = Recorder()
    batches = Batches(rows, features, Prompter(make_recipe(tiny).text), 4, seed=3, ahead=2)
    for number in range(7):  # over the ends of epochs
        batches(number)
    for number, expected in enumerate(features.expected):
        assert expected[0] == features.asked[number]
        assert [features.asked[n] for n in range(number, min(number + 3, 7))] == expected[: 7 - number]
        assert len(expected) == 3


def test_rows_that_are_fewer_than_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="6 rows are fewer than one batch of 7"):
        Order([row.image for row in rows_about(range(6))], 7, seed=3)


def test_a_batch_is_found_as_fast_at_the_end_of_many_rows_as_at_their_beginning() -> None:
    count, batch = 60_000, 40
    order = Order([Path(str(i // 2)) for i in range(count)], batch, seed=0)
    order(0)  # the first epoch is ready
    last = count // batch - 1

    def fastest(number: int) -> float:
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            order(number)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    assert max(fastest(number) for number in (0, last // 2, last)) < 1e-3  # walking takes more than 10 ms at the end
