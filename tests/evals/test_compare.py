"""Comparisons of two sides: by hand where that can be done, and by simulation where it cannot."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from marked import counted, marks

from bitseam.errors import DataError
from bitseam.evals import compare as module
from bitseam.evals.compare import Comparison, Difference, Estimate, accuracy, compare, mcnemar, spread
from bitseam.evals.marks import Marks


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAWS", 400)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 2 / 32),
        (6, 0, 2 / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (5, 5, 1.0),
        (40, 60, 0.056887933640980784),  # scipy.stats.binomtest(40, 100).pvalue
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    a, b = [1] * only_a + [0] * only_b + [1, 1, 0], [0] * only_a + [1] * only_b + [1, 1, 0]
    assert mcnemar(a, b) == pytest.approx(p, rel=1e-12)


def test_mcnemar_of_many_questions_is_a_number() -> None:
    assert 0 < mcnemar([1] * 1500 + [0] * 1300, [0] * 1500 + [1] * 1300) < 2e-4
    assert mcnemar([1] * 900, [0] * 900) == pytest.approx(2.0**-899)


def two_tasks() -> tuple[Marks, Marks]:
    coded = {0: {"a": "1100", "b": "11"}, 1: {"a": "1000", "b": "10"}}
    fp16 = {0: {"a": "1000", "b": "11"}, 1: {"a": "1110", "b": "11"}}
    return marks("coded", coded), marks("fp16", fp16)


def test_differences_are_means_of_seeds_and_then_of_tasks(quick: None) -> None:
    """On a, (+1/4 - 2/4) / 2; on b, (0 - 1/2) / 2; each task weighs as much as the other."""
    found = compare(*two_tasks())
    assert found.tasks["a"].points.value == pytest.approx(-12.5)
    assert found.tasks["b"].points.value == pytest.approx(-25)
    assert found.mean.points.value == pytest.approx(-18.75)
    assert found.tasks["a"].p == {0: 1.0, 1: 0.5}
    assert found.mean.p == {0: 1.0, 1: 0.25}
    assert found.seeds == [0, 1]


def test_accuracy_and_spread_are_of_the_mean_of_the_tasks(quick: None) -> None:
    """Seed 0 has 2/4 and 2/2, seed 1 has 1/4 and 1/2."""
    coded, _ = two_tasks()
    assert accuracy(coded, ["a", "b"]).value == pytest.approx(100 * (0.75 + 0.375) / 2)
    assert accuracy(coded, ["b"]).value == pytest.approx(75)
    assert spread(coded) == pytest.approx(100 * 0.375 / math.sqrt(2))
    assert spread(coded.at([0])) is None


def test_one_seeds_interval_is_the_normal_one() -> None:
    """Of many questions, of which 150 only one side answered rightly and 100 only the other."""
    a, b = "1" * 150 + "0" * 100 + "1" * 750, "0" * 150 + "1" * 100 + "1" * 750
    points = compare(marks("coded", {7: {"a": a}}), marks("fp16", {7: {"a": b}})).tasks["a"].points
    error = 100 * math.sqrt(0.250 - 0.05**2) / math.sqrt(1000)
    assert points.value == pytest.approx(5)
    assert (points.low, points.high) == pytest.approx((5 - 1.96 * error, 5 + 1.96 * error), abs=0.1 * error)
    assert points.least == pytest.approx(5 - 1.645 * error, abs=0.1 * error)


def test_seeds_that_differ_widen_the_interval(quick: None) -> None:
    """The same differences on average; of five seeds alike, and of seeds some points apart."""
    fp16 = marks("fp16", {seed: {"a": counted(700, 1000)} for seed in range(5)})
    alike = marks("coded", {seed: {"a": counted(700, 1000, 1 + seed)} for seed in range(5)})
    apart = marks("coded", {seed: {"a": counted(620 + 40 * seed, 1000, 1 + seed)} for seed in range(5)})
    one, other = (compare(coded, fp16).mean.points for coded in (alike, apart))
    assert one.value == pytest.approx(other.value) == pytest.approx(0)
    error = 100 * np.std([-0.08, -0.04, 0, 0.04, 0.08], ddof=1) / math.sqrt(5)
    assert one.high - one.low < 2 * 2.776 * error / 2
    assert 0.8 < (other.high - other.low) / (2 * 2.776 * error) < 1.6  # Student's t of four degrees of freedom


def test_questions_of_one_image_count_as_one() -> None:
    """Ten questions an image that are all right or all wrong together tell no more than one of them."""
    single = [marks(name, {0: {"a": counted(70, 100, number)}}) for number, name in enumerate(("coded", "fp16"))]
    images = {"a": [number for number in range(100) for _ in range(10)]}
    tenfold = [
        Marks(side.name, "", images, {0: {"a": "".join(10 * mark for mark in side.right[0]["a"])}}) for side in single
    ]
    one, ten = (asdict(compare(*sides).mean.points) for sides in (single, tenfold))
    assert ten == pytest.approx(one, abs=0.7)
    apart = [marks(side.name, side.right) for side in tenfold]
    few = asdict(compare(*apart).mean.points)
    assert (few["high"] - few["low"]) * 2.5 < ten["high"] - ten["low"]


def test_tasks_about_the_same_images_are_no_more_than_one_of_them(quick: None) -> None:
    """Of two tasks with the same answers, about the same images and about others."""
    right = [counted(60 + number, 100, number) for number in range(2)]
    widths = []
    for others in (0, 100):
        images = {"a": list(range(100)), "b": list(range(others, 100 + others))}
        sides = [Marks(name, "", images, {0: {"a": of, "b": of}}) for name, of in zip("ab", right, strict=True)]
        found = compare(*sides)
        assert found.mean.points.value == pytest.approx(found.tasks["a"].points.value)
        widths.append(found.mean.points.high - found.mean.points.low)
    alone = found.tasks["a"].points
    assert widths[0] == pytest.approx(alone.high - alone.low, rel=0.1)
    assert widths[1] == pytest.approx(widths[0] / math.sqrt(2), rel=0.1)


def test_results_are_the_same_each_time(quick: None) -> None:
    assert compare(*two_tasks()) == compare(*two_tasks())


def test_sides_are_interchangeable_up_to_their_sign() -> None:
    sides = [
        marks(name, {seed: {"a": counted(700 + 9 * number, 1000, 10 * number + seed)} for seed in range(4)})
        for number, name in enumerate(("coded", "fp16"))
    ]
    there, back = compare(*sides).mean.points, compare(*sides[::-1]).mean.points
    assert there.value == pytest.approx(-back.value)
    assert there.low == pytest.approx(-back.high, abs=0.15)


@pytest.mark.parametrize(
    ("seeds", "between", "own"),
    [(1, 0.0, 0.8), (5, 0.0, 0.0), (5, 0.0, 0.8), (5, 0.1, 0.4)],
    ids=["one seed", "chance alone", "sides find other questions hard", "and seeds differ"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    seeds: int, between: float, own: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sides alike in truth; what a question takes is shared, what a seed adds and what a side finds hard is not."""
    monkeypatch.setattr(module, "_DRAWS", 300)
    rng = np.random.default_rng(0)
    trials, count, two, one = 250, 150, 0, 0
    for _ in range(trials):
        hard = rng.normal(size=count)
        sides = []
        for name in ("coded", "fp16"):
            of_side = hard + own * rng.normal(size=count)
            right = 0.9 + of_side + between * rng.normal(size=(seeds, 1)) + 0.6 * rng.normal(size=(seeds, count)) > 0
            sides.append(marks(name, {s: {"a": "".join("01"[int(m)] for m in right[s])} for s in range(seeds)}))
        points = compare(*sides).mean.points
        two += points.low <= 0 <= points.high
        one += points.least <= 0
    assert 0.92 <= two / trials <= 0.985
    assert 0.92 <= one / trials <= 0.985


def at(least: float, high: float, seeds: int = 5) -> Comparison:
    points = Difference(Estimate((least + high) / 2, least - 0.1, high, least), dict.fromkeys(range(seeds), 1.0))
    return Comparison("coded", "fp16", list(range(seeds)), {"a": points}, points)


@pytest.mark.parametrize(
    ("least", "high", "verdict"),
    [
        (-0.999, 0.5, "non-inferior to fp16 at a margin of 1 point"),
        (0.2, 2.0, "non-inferior to fp16 at a margin of 1 point"),
        (-1.0, 0.5, "not shown to be non-inferior to fp16 at a margin of 1 point"),
        (-3.0, -1.0, "not shown to be non-inferior to fp16 at a margin of 1 point"),
        (-3.0, -1.001, "inferior to fp16 by more than 1 point"),
    ],
)
def test_decisions_at_both_sides_of_the_margin(least: float, high: float, verdict: str) -> None:
    assert at(least, high).verdict == verdict
    assert at(least, high).non_inferior == verdict.startswith("non-inferior")


def test_decisions_on_data_at_both_sides_of_the_margin(quick: None) -> None:
    """Of 20,000 questions, coded has .5 % and 1.5 % fewer right, with little noise."""
    fp16 = marks("fp16", {0: {"a": "1" * 14_000 + "0" * 6_000}})
    verdicts = []
    for lost in (100, 300):
        coded = marks("coded", {0: {"a": "0" * lost + "1" * (14_000 - lost) + "0" * 6_000}})
        verdicts.append(compare(coded, fp16).verdict)
    assert verdicts == ["non-inferior to fp16 at a margin of 1 point", "inferior to fp16 by more than 1 point"]


@pytest.mark.parametrize(("seeds", "begins"), [(1, "One seed of each side: "), (2, "2 seeds of each side: ")])
def test_few_seeds_are_told_to_say_nothing_of_training(seeds: int, begins: str) -> None:
    assert at(-0.5, 0.5, seeds).caution == (
        f"{begins}the intervals are over questions alone, and say nothing of how much the result differs from one "
        "training to the next."
    )


def test_enough_seeds_need_no_caution() -> None:
    assert at(-0.5, 0.5, 3).caution == ""


@pytest.mark.parametrize(("questions", "non_inferior"), [(8, False), (297, False), (299, True), (1000, True)])
def test_answers_all_alike_prove_no_more_than_their_number(questions: int, non_inferior: bool, quick: None) -> None:
    """That none of n differs is seen with 5 % probability where 1 - .05^(1/n) do: 1 % at 298."""
    sides = [marks(name, {0: {"a": counted(questions // 2, questions)}}) for name in ("coded", "fp16")]
    found = compare(*sides)
    assert found.mean.points.least == pytest.approx(-100 * (1 - 0.05 ** (1 / questions)))
    assert found.mean.points.high == pytest.approx(100 * (1 - 0.025 ** (1 / questions)))
    assert found.non_inferior == non_inferior
    assert found.mean.p == {0: 1.0}


def test_intervals_end_where_accuracies_do(quick: None) -> None:
    none, all_right = (marks("coded", {0: {"a": mark * 5}}) for mark in "01")
    assert (accuracy(none, ["a"]).low, accuracy(all_right, ["a"]).high) == (0, 100)
    points = compare(all_right, none).mean.points
    assert points.value == points.high == 100


def test_other_seeds_are_refused_by_name() -> None:
    coded = marks("coded", {seed: {"a": "10"} for seed in (0, 1, 4)})
    fp16 = marks("fp16", {seed: {"a": "10"} for seed in (0, 2)})
    with pytest.raises(DataError, match="seed by seed: only coded has seeds 1, 4; only fp16 has seed 2"):
        compare(coded, fp16)


def test_other_questions_are_refused() -> None:
    with pytest.raises(DataError, match="coded and fp16 answered different questions: 2 and 3 of task a"):
        compare(marks("coded", {0: {"a": "10"}}), marks("fp16", {0: {"a": "100"}}))


def test_a_comparison_is_kept_as_json(quick: None) -> None:
    found = compare(*two_tasks())
    kept = json.loads(json.dumps(found.as_json()))
    assert kept["sides"] == ["coded", "fp16"]
    assert kept["seeds"] == [0, 1]
    assert (kept["margin"], kept["non_inferior"], kept["verdict"]) == (1.0, False, found.verdict)
    assert kept["tasks"]["a"]["points"] == asdict(found.tasks["a"].points)
    assert kept["mean"]["p"] == {"0": 1.0, "1": 0.25}
    assert kept["caution"] == found.caution


def two_way_error(x: np.ndarray) -> float:
    """The standard error of the mean of a two-way layout, rows and columns random, a value a cell; as textbooks do."""
    rows, columns = x.shape
    mean = x.mean()
    of_rows = columns * ((x.mean(1) - mean) ** 2).sum() / (rows - 1)
    of_columns = rows * ((x.mean(0) - mean) ** 2).sum() / (columns - 1)
    rest = x - x.mean(1)[:, None] - x.mean(0) + mean
    variance = (of_rows + of_columns - (rest**2).sum() / ((rows - 1) * (columns - 1))) / x.size
    return math.sqrt(max(variance, of_columns / x.size) + 1 / columns**2)


def test_errors_of_draws_are_those_of_the_layout_drawn() -> None:
    """Drawing twice is having twice."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.normal(size=(3, 7)) + 2 * rng.normal(size=(3, 1)) + rng.normal(size=7)
        drawn, shown = rng.integers(3, size=3), rng.integers(7, size=7)
        weights = [np.bincount(picks, minlength=of)[None].astype(float) for picks, of in ((drawn, 3), (shown, 7))]
        mean, error = module._studentised(x, *weights)
        layout = x[drawn][:, shown]
        assert mean[0] == pytest.approx(layout.mean())
        assert error[0] == pytest.approx(two_way_error(layout))
