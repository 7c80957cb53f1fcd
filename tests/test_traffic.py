"""benchmarks/traffic.py and seeds.py: points are compared with fp16 over the seeds that both have."""

from __future__ import annotations

import pytest
from conftest import load_benchmark

from bitseam.errors import DataError
from bitseam.evals.marks import Marks, joined, packed, unpacked
from bitseam.evals.report import outcome_of

traffic = load_benchmark("traffic")
seeds = load_benchmark("seeds")


def run(name: str, seed: int, right: str, questions: str = "") -> Marks:
    return Marks(name, questions, {"a": list(range(len(right)))}, {seed: {"a": right}})


def test_kept_runs_and_new_ones_are_of_one_point() -> None:
    kept = unpacked(packed([run("demo fp16", 0, "1100"), run("demo coded", 0, "1111")]))
    found = traffic.together([run("demo coded", 1, "0011"), run("demo fp16", 0, "1101")], kept)
    assert found["demo coded"].right == {0: {"a": "1111"}, 1: {"a": "0011"}}
    assert found["demo fp16"].right == {0: {"a": "1101"}}  # measured anew


def test_points_are_compared_over_common_seeds() -> None:
    runs = [run("demo fp16", seed, "1100") for seed in (0, 1)]
    runs += [run("demo coded", seed, "1000") for seed in (0, 1, 2)] + [run("demo 48 channels", 5, "1100")]
    found = traffic.compared(traffic.together(runs, {}))
    assert set(found) == {"demo coded"}
    assert found["demo coded"].seeds == [0, 1]
    assert found["demo coded"].mean.points.value == -25


def test_answers_to_other_questions_are_refused() -> None:
    kept = {"demo coded": run("demo coded", 0, "1111", "others")}
    with pytest.raises(DataError, match="demo coded and demo coded answered different questions"):
        traffic.together([run("demo coded", 1, "1111")], kept)


def test_a_report_with_several_seeds_counts_all_of_them() -> None:
    sides = {
        "coded": joined([run("coded", seed, right) for seed, right in ((0, "1000"), (1, "1100"), (2, "0111"))]),
        "fp16": joined([run("fp16", seed, "1100") for seed in (2, 1, 0)]),
    }
    one = {"correct": 1, "total": 4}
    report = {"tasks": {"a": {"chance": 0.1, "coded": one, "fp16": one}}, "curves": {}, "samples": [], "date": "today"}
    kept = seeds.with_seeds(report, sides, [{"side": "coded", "seed": 0}])
    assert kept.keys() == {"tasks", "date", "marks", "comparison", "runs"}
    assert kept["tasks"]["a"]["coded"] == {"correct": 6, "total": 12}
    assert kept["tasks"]["a"]["chance"] == 0.1
    assert kept["marks"]["right"]["coded"]["2"] == {"a": "0111"}
    found = outcome_of(kept)
    assert found.comparison is not None
    assert found.comparison.as_json() == kept["comparison"]
    assert found.comparison.seeds == [0, 1, 2]
    assert found.means["coded"].value == 50
