"""Benchmarks of whole runs, on a tiny one: what they start, read and go on from is there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import Tiny, load_benchmark
from tiny_run import write_tiny_run

from bitseam import config
from bitseam.cli.demo import _FP16
from bitseam.cli.main import _load
from bitseam.data.rows import read_rows
from bitseam.evals.marks import mark
from bitseam.runs.checkpoint import load_pair, load_training, newest

BENCHMARKS = [
    path.stem
    for path in sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))
    if "def main(" in path.read_text()
]
POINT = {
    "streams.image.quantizer": "rate-fsq",
    "streams.image.levels": 21,
    "streams.image.clip": 25,
    "streams.image.codec": {"id": "entropy-uniform", "groups": 4, "contexts": 3},
    "streams.image.rates": [1, 0.5],
    "train.steps": 2,
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_tells_its_options(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = load_benchmark(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out


@pytest.fixture(scope="module")
def processes() -> ModuleType:
    load_benchmark("processes")
    import processes  # as the others import it

    return processes


@pytest.fixture(scope="module")
def demo(processes: ModuleType, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the place of what `make demo` writes."""
    folder = tmp_path_factory.mktemp("demo")
    processes.RECIPE = write_tiny_run(folder, tiny)
    (folder / "questions").mkdir()
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for name in ("train", "test"):
        lines = (json.dumps({**row, "image": str(folder / row["image"])}) for row in rows)
        (folder / "questions" / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def run(processes: ModuleType, demo: Path) -> Path:
    return processes.train(demo, "a point, of ours", POINT, seed=3)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSEAM_CACHE", str(tmp_path))


def test_points_of_the_benchmarks_are_recipes(processes: ModuleType) -> None:
    """In this process, and as their command lines have them."""
    demo = Path(__file__).parent.parent / "recipes" / "demo.toml"
    points = load_benchmark("traffic").POINTS | load_benchmark("learned_rate").POINTS
    for settings in points.values():
        words = processes.command("train", demo, settings)
        sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        assert len(sets) == len(settings)
        assert _load(demo, sets) == config.load_recipe(demo, settings)
    fp16 = config.load_recipe(demo, points["fp16"]).streams["image"]
    assert (fp16.quantizer, fp16.channels, fp16.codec, fp16.gradient) == ("none", None, {"id": "fp16"}, {"id": "fp16"})
    assert _load(demo, _FP16).streams["image"] == fp16  # the demo's own


def test_a_run_is_trained_once(processes: ModuleType, demo: Path, run: Path) -> None:
    assert run == demo / "a-point-of-ours-seed-3"
    assert processes.summary_of(run)["steps"] == len(processes.steps_of(run)) == 2
    assert processes.about_run(run)["commit"]
    before = (run / "client" / "summary.json").stat()
    assert processes.train(demo, "a point, of ours", POINT, seed=3) == run
    assert (run / "client" / "summary.json").stat() == before


def test_a_runs_answers_are_marked_as_they_were_counted(demo: Path, run: Path, processes: ModuleType) -> None:
    summary = processes.summary_of(run)
    assert summary["seed"] == 3
    found = mark("a point", summary["seed"], read_rows(demo / "questions" / "test.jsonl"), summary["answers"])
    counted = {task: {"correct": int(found.of(task).sum()), "total": found.of(task).size} for task in found.images}
    assert counted == summary["tasks"]


def test_a_trained_point_is_asked_at_each_of_its_rates(
    demo: Path, run: Path, processes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned_rate = load_benchmark("learned_rate")
    monkeypatch.setattr(learned_rate, "RECIPE", processes.RECIPE)
    row = learned_rate.row(demo, run, POINT)
    assert [(asked["rate"], asked["multiple"]) for asked in row["asked"]] == [(0, 1.0), (1, 0.5)]
    coarse, fine = (asked["bytes_per_image"] for asked in row["asked"])
    assert 0 < coarse < fine
    assert row["steps"] == 2
    assert row["image_bytes"] == pytest.approx(row["predicted_bytes"], rel=0.5)
    tests = read_rows(demo / "questions" / "test.jsonl")
    assert row["test_loss"] == learned_rate.loss_on_test(run, tests) != learned_rate.loss_on_test(run, tests, rate=1)


def test_a_run_goes_on_at_other_rates(demo: Path, run: Path, tmp_path: Path) -> None:
    load_benchmark("several_rates").branch(run, tmp_path / "on", (1.0, 0.6, 1.6), 9)
    client, server, recipe, _ = load_pair(newest(tmp_path / "on", "client"), newest(tmp_path / "on", "server"), str)
    assert recipe.streams["image"].rates == (1.0, 0.6, 1.6)
    assert recipe.train.steps == 9
    sender = client.senders()["image"]
    assert sender.rates == server.receivers()["image"].rates == 3
    state = load_training(newest(tmp_path / "on", "client"))
    begins = "own.image."
    sender.restore({key.removeprefix(begins): value for key, value in state.items() if key.startswith(begins)})
    assert sender.codec(2) == server.receivers()["image"].codec(2)


def test_what_a_plan_sent_is_counted_in_channels(
    processes: ModuleType, demo: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = load_benchmark("planned")
    monkeypatch.setattr(planned, "RECIPE", processes.RECIPE)
    (tmp_path / "plan.toml").write_text("[streams.image]\nchannels = 16\n")
    half = planned.sent(run, tmp_path / "plan.toml")
    (tmp_path / "plan.toml").write_text("")
    whole = planned.sent(run, tmp_path / "plan.toml")
    assert half["sent_bits"] == 2 * whole["sent_bits"]
    assert whole["sent_bits"] == pytest.approx(whole["tables_bits"], rel=0.5)
    assert whole["curve"][0]["bits"] == pytest.approx(whole["sent_bits"], rel=1e-6)


def test_contexts_are_tried_at_each_rate(
    demo: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = load_benchmark("contexts")
    for name, value in (("GROUPS", (2,)), ("CONTEXTS", (1, 3)), ("ROUNDS", 1)):
        monkeypatch.setattr(contexts, name, value)
    words = ["contexts.py", "--run", run, "--questions", demo / "questions", "--json", tmp_path / "contexts.json"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    contexts.main()
    rows = json.loads((tmp_path / "contexts.json").read_text())["rows"]
    assert [(row["multiple"], row["contexts"]) for row in rows] == [(1, 1), (1, 3), (0.5, 1), (0.5, 3)]
    assert rows[2]["of_ten"] > rows[0]["of_ten"] > 0


def test_entropy_is_that_of_what_a_recipe_sends(
    demo: Path, processes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entropy = load_benchmark("entropy")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3), dtype=np.uint8))
    monkeypatch.setattr(entropy, "path_of", lambda name: tmp_path if name == "cifar10" else Path(name))
    for name, value in (("RECIPE", processes.RECIPE), ("CALIBRATION", 8), ("CODED", 16), ("MESSAGE", 4)):
        monkeypatch.setattr(entropy, name, value)
    torch.manual_seed(0)
    bits = entropy.measure_bits([1, 8])
    for row in bits.values():
        assert 0 < row["entropy"] <= 2
        assert row["entropy"] < row["sent"]
    assert bits[8]["entropy"] <= bits[1]["entropy"]


@pytest.mark.slow
def test_surviving_is_timed_and_so_is_a_split_step(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overhead, step = load_benchmark("overhead"), load_benchmark("step")
    recipe = write_tiny_run(tmp_path, tiny)
    monkeypatch.chdir(tmp_path)
    for name, value in (("WARM", 1), ("STEPS", 2), ("CHECKPOINTS", 1), ("DIGESTS", 2)):
        monkeypatch.setattr(overhead, name, value)
    figures = overhead.measure(recipe)
    assert figures["forward_bytes"] > 0
    assert figures["checkpoint_overhead"] > figures["exactly_once_overhead"] > 0
    with step.serving(recipe, tmp_path / "split", {"train.steps": 4, "train.checkpoint_every": 10**9}) as loaded:
        timed = step.measure(loaded, rounds=2, steps=2)
    assert min(timed["split_s"], timed["unsplit_s"], timed["parts"]["client: wait"]) > 0
