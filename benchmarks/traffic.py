"""Whole-step traffic against accuracy: the demo's training at fewer and fewer bits.

    python benchmarks/traffic.py --demo runs/demo --json docs/results/traffic.json [--points "48 channels"]
        [--seeds 0 1]

After `make demo`: trains and evaluates the demo's recipe with each point's settings, across two processes over TLS, and
writes a row a point, seed and task beside those of the demo's own two runs (`coded` and `fp16` at seed 0), whose fp16
bytes are the ones compared with; and a picture beside FILE. A run that is finished already is read, not repeated. Rows
of points that are not named stay. Nothing here was tuned on the test questions.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from bitseam.cli.machine import circumstances, free_port
from bitseam.evals.answers import wilson

RECIPE = Path("recipes/demo.toml")
LEARNED = (
    "streams.image.quantizer=rate-fsq",
    "streams.image.codec.id=entropy-uniform",
    "streams.image.levels=21",
    "streams.image.clip=25",  # a step of two and a half deviations
    "streams.image.codec.groups=16",
    "streams.image.codec.contexts=5",
    "streams.image.distortion_weight=0.01",
)
LONGER = "train.steps=2000"  # a quarter more
COARSE = "streams.image.gradient.step=4"
FEW = ("streams.image.channels=24", "streams.image.gradient.step=2")
POINTS = {
    "coded": (),
    "fp16": ("streams.image.quantizer=none", "streams.image.codec=fp16", "streams.image.gradient=fp16"),
    "48 channels": ("streams.image.channels=48",),
    "24 channels": FEW,
    "24 channels, 2,000 steps": (*FEW, LONGER),
    "learned rate": LEARNED,
    "learned rate, 2,000 steps": (*LEARNED, LONGER),
    "learned rate, coarse gradients": (*LEARNED, COARSE),
    "learned rate, coarse gradients, 2,000 steps": (*LEARNED, LONGER, COARSE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--points", nargs="*", default=list(POINTS), choices=list(POINTS))
    parser.add_argument("--seeds", nargs="*", default=[0], type=int)
    options = parser.parse_args()
    report = json.loads((options.demo / "report.json").read_text())
    kept = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    own = ("fp16", "coded")
    points = {(f"demo {name}", 0): (report["traffic"][name], report["commit"]) for name in own}
    tasks = {(f"demo {name}", 0): {task: score[name] for task, score in report["tasks"].items()} for name in own}
    for name in options.points:
        for seed in options.seeds:
            if (f"demo {name}", seed) in points:
                continue
            run = train(options.demo, name, POINTS[name], seed)
            summary = json.loads((run / "client" / "summary.json").read_text())
            points[f"demo {name}", seed] = summary, about_run(run)["commit"]
            tasks[f"demo {name}", seed] = summary["tasks"]
    fp16 = report["traffic"]["fp16"]
    rows = [
        {
            "recipe": name,
            "seed": seed,
            **{part: traffic[part] for part in ("up_bytes", "down_bytes", "socket_bytes")},
            "fp16_up_bytes": fp16["up_bytes"],
            "fp16_down_bytes": fp16["down_bytes"],
            "task": task,
            **{part: score[part] for part in ("correct", "total")},
            "commit": commit,
        }
        for (name, seed), (traffic, commit) in points.items()
        for task, score in tasks[name, seed].items()
    ]
    rows += [row for row in kept if (row["recipe"], row["seed"]) not in points]
    rows.sort(key=fewer)
    about = circumstances(report["threads"])
    options.json.write_text(json.dumps({**about, "points": POINTS, "rows": rows}, indent=1) + "\n")
    show(rows)
    draw(rows, options.json.with_suffix(".png"))


def train(demo: Path, name: str, point: tuple[str, ...], seed: int, plan: Path | None = None) -> Path:
    """Serve and train the demo's recipe with a point's settings, over a plan where there is one; the run's folder."""
    out = run_folder(demo, name, seed)
    if (out / "client" / "summary.json").exists():
        return out
    settings = [
        f"data.train={demo}/questions/train.jsonl",
        f"data.test={demo}/questions/test.jsonl",
        f"network.certificates={demo}/certs",
        f"network.address=localhost:{free_port()}",
        f"out={out}",
        f"seed={seed}",
        *point,
    ]
    words = [str(RECIPE), *(word for setting in settings for word in ("--set", setting))]
    words += ["--plan", str(plan)] if plan else []
    bitseam = [sys.executable, "-m", "bitseam.cli.main"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "about.json").write_text(json.dumps(circumstances(torch.get_num_threads())))
    with (out / "server.log").open("w") as log:
        server = subprocess.Popen([*bitseam, "serve", *words], stdout=log, stderr=log)
        try:
            subprocess.run([*bitseam, "train", *words], check=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    return out


def run_folder(demo: Path, name: str, seed: int) -> Path:
    """Where a point's run lies."""
    return demo / (name.replace(",", "").replace(" ", "-") + f"-seed-{seed}" * (seed > 0))


def about_run(run: Path) -> dict:
    """Machine, versions, threads and commit of a run that `train` made."""
    return json.loads((run / "about.json").read_text())


def show(rows: list[dict]) -> None:
    """A table on the screen."""
    for row in rows:
        traffic = f"{(row['up_bytes'] + row['down_bytes']) / 1e6:8.2f} MB {fewer(row):6.1f} times fewer"
        accuracy = told(row["correct"], row["total"])
        print(f"{row['recipe']:12} seed {row['seed']} {traffic}  {row['task']:12} {accuracy}")


def draw(rows: list[dict], path: Path) -> None:
    """Accuracy against how many times fewer bytes than fp16, with 95 % intervals, a panel a task and a dot a run."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for axes, task in zip(figure.subplots(1, len(tasks)), tasks, strict=True):
        of_task = [row for row in rows if row["task"] == task]
        exact = next(row for row in of_task if (row["recipe"], row["seed"]) == ("demo fp16", 0))
        low, high = (100 * end for end in wilson(exact["correct"], exact["total"]))
        axes.axhspan(low, high, color="tab:gray", alpha=0.15, label="fp16, seed 0: 95 % interval")
        for number, recipe in enumerate(recipes):
            runs = [row for row in of_task if row["recipe"] == recipe]
            share = [100 * row["correct"] / row["total"] for row in runs]
            ends = [wilson(row["correct"], row["total"]) for row in runs]
            below = [at - 100 * end[0] for at, end in zip(share, ends, strict=True)]
            above = [100 * end[1] - at for at, end in zip(share, ends, strict=True)]
            label = recipe.removeprefix("demo ")
            axes.errorbar(
                [fewer(row) for row in runs],
                share,
                (below, above),
                fmt="o",
                ms=4,
                lw=0.7,
                color=f"C{number}",
                label=label,
            )
        axes.set(xscale="log", title=task, xlabel="times fewer bytes than fp16, both ways", ylabel="correct, %")
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=100)


def fewer(row: dict) -> float:
    """How many times fewer bytes than fp16, both ways."""
    return (row["fp16_up_bytes"] + row["fp16_down_bytes"]) / (row["up_bytes"] + row["down_bytes"])


def told(correct: int, total: int) -> str:
    """An accuracy with its 95 % interval."""
    low, high = wilson(correct, total)
    return f"{correct / total:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
