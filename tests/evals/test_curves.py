"""Loss curves: where a loss lies on the logarithmic axis, and its ticks."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from bitseam.evals.curves import chart


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+),([\d.-]+)", path)]


def test_equal_ratios_are_equal_lengths() -> None:
    curve = {"step": [1, 2, 3, 4], "loss": [8.0, 4.0, 2.0, 1.0]}
    heights = [y for _, y in points(chart({"coded": curve})["lines"]["coded"]["raw"])]
    lengths = [below - above for above, below in pairwise(heights)]
    assert lengths == pytest.approx([lengths[0]] * 3, abs=0.2)
    assert lengths[0] > 100


def test_a_jump_is_within_the_picture_and_does_not_flatten_the_end() -> None:
    """A loss of 20 at one step: all of it shows, and so does the difference of .25 and .3 at the end."""
    falling = [3 * math.exp(-step / 20) + 0.25 for step in range(200)]
    jump = [*falling[:100], 20.6, *falling[101:]]
    lines = chart(
        {"fp16": {"step": list(range(1, 201)), "loss": [loss + 0.05 for loss in falling]}}
        | {"coded": {"step": list(range(1, 201)), "loss": jump}}
    )["lines"]
    raw = points(lines["coded"]["raw"])
    assert 0 < min(y for _, y in raw) == raw[100][1] < 50
    assert max(y for _, y in raw) < 1000
    (_, coded), (_, fp16) = (points(lines[name]["smooth"])[-1] for name in ("coded", "fp16"))
    assert coded - fp16 > 30
    assert lines["coded"]["final"] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        ([20.6, 3, 0.3], ["0.2", "0.5", "1", "2", "5", "10", "20"]),
        ([0.31, 0.3, 0.29], ["0.2", "0.25", "0.3"]),
        ([5000, 0.001], ["0.001", "0.01", "0.1", "1", "10"]),
    ],
)
def test_ticks_are_round_numbers_of_the_range(losses: list[float], labels: list[str]) -> None:
    drawn = chart({"coded": {"step": list(range(len(losses))), "loss": losses}})["y"]
    assert [label for label, _ in drawn][: len(labels)] == labels
    assert all(0 <= at <= 1 for _, at in drawn)
    assert [at for _, at in drawn] == sorted(at for _, at in drawn)


@pytest.mark.parametrize("losses", [[0.0], [2.5], [0.0, 0.0, 1.0], [-0.1, 1.0]])
def test_losses_of_any_kind_have_a_place(losses: list[float]) -> None:
    drawn = chart({"coded": {"step": list(range(1, 1 + len(losses))), "loss": losses}})
    assert len(points(drawn["lines"]["coded"]["raw"])) == len(losses)  # every one is a number
