"""Whether one side's models answer the same questions as well as another's.

Three figures, which every table of two sides takes from here, in points (hundredths of right answers):

*Difference with a 95 % interval.* The answers are paired: both sides answered the same questions, and the models of one
seed saw the same data in the same order from the same start. What one training gives is one draw of many (Bouthillier
et al., "Accounting for variance in machine learning benchmarks", MLSys 2021), and so are the questions; so seeds and
images are both resampled, each independently of the other, since every seed answers every question (Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 2007). Both sides' runs of a seed are drawn together: that is right
whether or not the seed makes them alike. Images are drawn with all their questions, which are not independent of each
other. The interval is studentised (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 12), since
percentiles of so few seeds are too narrow where seeds differ, and of crossed draws too wide where they do not. With
fewer seeds than `SEEDS` only images are drawn: such an interval does not tell what another training would give.

*McNemar's test* (Psychometrika 1947), in its exact form: if both models are right equally often, the questions that
only one of them answered rightly fall on either side as a fair coin does. It is a test of two models, not of two
methods, so there is one p for each seed.

*Non-inferiority* of the mean of the tasks at `MARGIN`, stated before the runs: the lower end of the one-sided 95 %
interval lies above minus the margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitseam.errors import DataError, printable
from bitseam.evals.marks import Marks, same_questions

MARGIN = 1.0  # points on the mean of the tasks
SEEDS = 3  # fewer do not tell how much seeds differ
_DRAWS = 10_000  # at the most, and a fifth of them at the least
_DRAWN = 10**8  # images drawn in all, where that leaves draws enough: seconds
_AT_ONCE = 4_000_000  # of them held at a time
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided 95 % interval, and the lower end of its one-sided 95 % interval."""

    value: float
    low: float
    high: float
    least: float


@dataclass(frozen=True)
class Difference:
    """Of one task, or of the mean of the tasks: side a less side b, in points; and McNemar's exact p by seed."""

    points: Estimate
    p: Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """Side a against side b over these seeds, in points."""

    a: str
    b: str
    seeds: Sequence[int]
    tasks: Mapping[str, Difference]
    mean: Difference

    @property
    def non_inferior(self) -> bool:
        return self.mean.points.least > -MARGIN

    @property
    def verdict(self) -> str:
        """What the comparison shows at the margin, in words that follow the name of side a."""
        margin = points(MARGIN)
        if self.non_inferior:
            return f"non-inferior to {self.b} at a margin of {margin}"
        if self.mean.points.high < -MARGIN:
            return f"inferior to {self.b} by more than {margin}"
        return f"not shown to be non-inferior to {self.b} at a margin of {margin}"

    @property
    def caution(self) -> str:
        """What the interval leaves out, as a sentence; empty where seeds were resampled."""
        if (count := len(self.seeds)) >= SEEDS:
            return ""
        runs = "One seed" if count == 1 else f"{count} seeds"
        return (
            f"{runs} of each side: the intervals are over questions alone, and say nothing of how much the result "
            "differs from one training to the next."
        )

    def as_json(self) -> dict[str, Any]:
        """All of it as `report.json` has it, in points."""
        found = {
            "tasks": {task: asdict(difference) for task, difference in self.tasks.items()},
            "mean": asdict(self.mean),
        }
        told = {"margin": MARGIN, "non_inferior": self.non_inferior, "verdict": self.verdict, "caution": self.caution}
        return {"sides": [self.a, self.b], "seeds": list(self.seeds), **found, **told}


def compare(a: Marks, b: Marks) -> Comparison:
    """Side a against side b.

    Raises DataError, with what differs, unless both answered the same questions, at the same seeds.
    """
    same_questions(a, b)
    if a.seeds != b.seeds:
        only = {side.name: sorted(set(side.right) - set(other.right)) for side, other in ((a, b), (b, a))}
        told = "; ".join(f"only {printable(name)} has {_numbers(seeds)}" for name, seeds in only.items() if seeds)
        raise DataError(f"{printable(a.name)} and {printable(b.name)} are compared seed by seed: {told}")
    marks = {task: (a.of(task), b.of(task)) for task in a.images}
    tasks = {
        task: Difference(_estimate({task: of_a - of_b}, a.images), _mcnemars(a.seeds, of_a, of_b))
        for task, (of_a, of_b) in marks.items()
    }
    every_a, every_b = (np.concatenate(side, axis=1) for side in zip(*marks.values(), strict=True))
    whole = _estimate({task: of_a - of_b for task, (of_a, of_b) in marks.items()}, a.images)
    return Comparison(a.name, b.name, a.seeds, tasks, Difference(whole, _mcnemars(a.seeds, every_a, every_b)))


def points(value: float) -> str:
    """A number of points, in words."""
    return f"{value:g} point" + "s" * (value != 1)


def accuracy(side: Marks, tasks: Sequence[str]) -> Estimate:
    """The mean of these tasks' accuracies, over seeds, in points; with one task, its accuracy."""
    found = _estimate({task: side.of(task) for task in tasks}, side.images)
    return Estimate(found.value, max(found.low, 0), min(found.high, 100), max(found.least, 0))


def spread(side: Marks) -> float | None:
    """The standard deviation over seeds of the mean of the tasks' accuracies, in points; None with one seed."""
    means = np.mean([side.of(task).mean(1) for task in side.images], axis=0)
    return 100 * float(means.std(ddof=1)) if len(means) > 1 else None


def mcnemar(a: Sequence[float] | Values, b: Sequence[float] | Values) -> float:
    """Two-sided p of McNemar's exact test of two models' marks on the same questions."""
    one, other = np.asarray(a), np.asarray(b)
    only_a, only_b = int((one > other).sum()), int((other > one).sum())
    tail = sum(math.comb(only_a + only_b, count) for count in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2 ** (only_a + only_b))


def _mcnemars(seeds: Sequence[int], a: Values, b: Values) -> dict[int, float]:
    return {seed: mcnemar(*pair) for seed, *pair in zip(seeds, a, b, strict=True)}


def _numbers(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _estimate(values: Mapping[str, Values], images: Mapping[str, Sequence[int]]) -> Estimate:
    """The mean over tasks of the means of their values, (seeds, questions) each, in points."""
    x, fewest = _by_image(values, images)
    if len(x) < SEEDS:
        x = x.mean(0, keepdims=True)
    rng = np.random.default_rng(0)
    count, t = x.shape[1], []
    value, scale = (float(part[0]) for part in _studentised(x, np.ones((1, len(x))), np.ones((1, count))))
    enough = min(_DRAWS, max(_DRAWS // 5, _DRAWN // count))
    for start in range(0, enough, size := max(1, _AT_ONCE // count)):
        draws = min(size, enough - start)
        means, scales = _studentised(x, _multiplicities(rng, draws, len(x)), _multiplicities(rng, draws, count))
        t.append((means - value) / scales)
    high, low, least = (value - scale * end for end in np.quantile(np.concatenate(t), [0.025, 0.975, 0.95]))
    # Where next to none of n images differ, draws do not show what n more would: the rule of three (Hanley and
    # Lippman-Hand, JAMA 1983), exactly: none of n is seen with probability alpha where the share is 1 - alpha^(1/n).
    two, one = (1 - alpha ** (1 / fewest) for alpha in (0.025, 0.05))
    ends = (value, min(low, value - two), max(high, value + two), min(least, value - one))
    return Estimate(*(float(100 * np.clip(end, -1, 1)) for end in ends))


def _by_image(values: Mapping[str, Values], images: Mapping[str, Sequence[int]]) -> tuple[Values, int]:
    """(seeds, images) whose mean over images is the mean over tasks of a seed; and the fewest images of a task.

    A task's mean is a ratio, since images have different numbers of questions; it is linearised: an image adds the sum
    over its questions of (value - the task's mean) / the task's questions.
    """
    numbers = sorted({number for task in values for number in images[task]})
    places = [np.searchsorted(numbers, images[task]) for task in values]
    fewest = min(len(set(images[task])) for task in values)
    seeds = []
    for of_seed in zip(*values.values(), strict=True):
        shares = [
            np.bincount(place, row - row.mean(), len(numbers)) / row.size
            for place, row in zip(places, of_seed, strict=True)
        ]
        seeds.append(np.mean([row.mean() for row in of_seed]) + len(numbers) * np.mean(shares, axis=0))
    return np.stack(seeds), fewest


def _multiplicities(rng: np.random.Generator, draws: int, count: int) -> Values:
    """How often each of `count` is drawn when as many are drawn with replacement, (draws, count)."""
    drawn = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * count).reshape(draws, count).astype(float)


def _studentised(x: Values, seeds: Values, images: Values) -> tuple[Values, Values]:
    """Means of x, (S, I), at these weights of its seeds, (draws, S), and images, (draws, I); and their standard errors.

    The error is that of a two-way layout with random rows and columns and a value a cell: the variance of the seeds'
    means, and of the images', less that of what is left, which both have in them. The variance by images is the least:
    few seeds may be alike by chance. One answer's weight is added, so that no draw has an error of zero.
    """
    many, count = x.shape
    each = images @ x.T / count  # the seeds' means
    one, other = np.triu_indices(many)
    products = images @ (x[one] * x[other]).T / count  # means over images of pairs of seeds
    mean = (seeds * each).sum(1) / many
    twice = np.where(one == other, 1, 2)
    by_image = (products * twice * seeds[:, one] * seeds[:, other]).sum(1) / many**2 - mean**2
    variance = of_images = by_image / max(count - 1, 1)
    if many > 1:
        by_seed = (seeds * each**2).sum(1) / many - mean**2
        cells = (products[:, one == other] * seeds).sum(1) / many - mean**2
        rest = (cells - by_seed - by_image) / ((many - 1) * max(count - 1, 1))
        variance = np.maximum(of_images, of_images + by_seed / (many - 1) - rest)
    return mean, np.sqrt(np.maximum(variance, 0) + 1 / count**2)
