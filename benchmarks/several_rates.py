"""What it costs one model to serve several rates: each rate beside a model trained for that rate alone.

    python benchmarks/several_rates.py --demo runs/demo --json docs/results/several_rates.json [--seeds 0 1 2]

After `benchmarks/learned_rate.py --points "learned rate"` with the same seeds: each of its pairs goes on from its last
checkpoint for 400 steps, once with every rate in turn and once with each rate alone, across two processes over TLS, and
is asked the test questions at the rates that it was trained at. Runs from the start differ by when they take off, which
hides half a point; what begins at the same weights does not. A run that is finished already is read, not repeated.
Nothing here was tuned on the test questions.

points     share of correct answers, in percent: mean of three tasks
test_loss  of the test questions, nats an answer token
costs      what a model of several rates has fewer points, and more test loss, than one of a single rate at that rate
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev

import torch
from learned_rate import loss_on_test
from processes import about_run, run_folder, train
from rates import ask, with_image
from safetensors.torch import load_file, save_file
from traffic import LEARNED

from bitseam.data.rows import read_rows
from bitseam.runs.checkpoint import newest, read_config

MULTIPLES = (1.0, 0.6, 1.6)  # of the learned rate's step
MORE = 400  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", nargs="*", default=[0, 1, 2], type=int)
    options = parser.parse_args()
    kept = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    rows = [row for row in kept if row["seed"] not in options.seeds]
    for seed in options.seeds:
        for multiples in (MULTIPLES, *((multiple,) for multiple in MULTIPLES)):
            rows += go_on(options.demo, seed, multiples)
            options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    show(rows)


def go_on(demo: Path, seed: int, multiples: tuple[float, ...]) -> list[dict]:
    """Train a pair of the learned rate farther at some multiples of its step; a row for each of them."""
    start = run_folder(demo, "learned rate", seed)
    steps = read_config(newest(start, "client"))[1].step + MORE
    settings = LEARNED | {"streams.image.rates": multiples, "train.steps": steps}
    name = f"going on at {' '.join(f'{multiple:g}' for multiple in multiples)}"
    if not run_folder(demo, name, seed).exists():
        branch(start, run_folder(demo, name, seed), multiples, steps)
    run = train(demo, name, settings, seed)
    recipe, _ = read_config(newest(run, "client"))
    tests = read_rows(demo / "questions" / "test.jsonl")
    pictures = sum(1 for _ in groupby(test.image for test in tests))
    rows = []
    for rate, multiple in enumerate(multiples):
        size, tasks = ask(with_image(recipe, rate=rate), run, tests)
        rows.append(
            {
                "seed": seed,
                "trained_at": multiples,
                "multiple": multiple,
                "bytes_per_image": size / pictures,
                "tasks": tasks,
                "points": mean(100 * score["correct"] / score["total"] for score in tasks.values()),
                "test_loss": loss_on_test(run, tests, rate),
            }
            | about_run(run)
        )
    return rows


def branch(start: Path, out: Path, multiples: tuple[float, ...], steps: int) -> None:
    """Copy a run's last checkpoints to `out` as if the run had these multiples and would have so many steps."""
    for side in ("client", "server"):
        found = newest(start, side)
        folder = out / side / found.name
        shutil.copytree(found, folder)
        kept = json.loads((folder / "config.json").read_text())
        kept["recipe"]["streams"]["image"]["rates"] = multiples
        kept["recipe"]["train"]["steps"] = steps
        (folder / "config.json").write_text(json.dumps(kept))
        model = load_file(folder / "model.safetensors")
        model["streams.image.tables"] = model["streams.image.tables"][:1].repeat(len(multiples), 1)
        save_file(model, folder / "model.safetensors")
        training = load_file(folder / "training.safetensors")
        for rate in range(len(multiples)) if side == "client" else ():  # new tables at once
            training[f"own.image.{rate}.counts"] = torch.zeros(())
            training[f"own.image.{rate}.lost"] = torch.tensor(math.inf, dtype=torch.float64)
        save_file(training, folder / "training.safetensors")


def show(rows: list[dict]) -> None:
    """A table on the screen."""
    alone = {(row["seed"], row["multiple"]): row for row in rows if len(row["trained_at"]) == 1}
    costs: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        told = f"step x {row['multiple']:<3g} of {row['trained_at']}: {row['bytes_per_image']:5.1f} bytes an image"
        print(f"seed {row['seed']}  {told}  {row['points']:.2f} points  test loss {row['test_loss']:.4f}")
        if len(row["trained_at"]) > 1:
            other = alone[row["seed"], row["multiple"]]
            for part, sign in (("points", 1), ("test_loss", -1)):
                costs.setdefault((part, row["seed"]), []).append(sign * (other[part] - row[part]))
    for part in ("points", "test_loss"):
        of_seeds = [mean(cost) for (name, _), cost in costs.items() if name == part]
        error = f" ± {stdev(of_seeds) / len(of_seeds) ** 0.5:.4f}" if len(of_seeds) > 1 else ""
        print(f"several rates cost {mean(of_seeds):+.4f}{error} {part}, mean over {len(of_seeds)} seeds")


if __name__ == "__main__":
    main()
