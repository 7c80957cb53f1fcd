"""Whole-step traffic against accuracy: the demo's training at fewer and fewer bits.

    python benchmarks/traffic.py --demo runs/demo --json docs/results/traffic.json [--points "48 channels"]
        [--seeds 0 1]

After `make demo`: trains and evaluates the demo's recipe with each point's settings, across two processes over TLS, and
writes a row a point, seed and task beside those of the demo's own two runs (`coded` and `fp16` at seed 0), whose fp16
bytes are the ones compared with; and a picture beside FILE. A run that is finished already is read, not repeated. Rows
of points that are not named stay. Nothing here was tuned on the test questions.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from processes import Settings, about_run, options_of, summary_of, train

from bitseam.cli.machine import circumstances
from bitseam.evals.answers import wilson

LEARNED = {
    "streams.image.quantizer": "rate-fsq",
    "streams.image.levels": 21,
    "streams.image.clip": 25,  # a step of two and a half deviations
    "streams.image.codec": {"id": "entropy-uniform", "groups": 16, "contexts": 5},
    "streams.image.distortion_weight": 0.01,
}
LONGER = {"train.steps": 2000}  # a quarter more
COARSE = {"streams.image.gradient.step": 4}
FEW = {"streams.image.channels": 24, "streams.image.gradient.step": 2}
POINTS: dict[str, Settings] = {
    "coded": {},
    "fp16": {"streams.image": {"quantizer": "none", "codec": "fp16", "gradient": "fp16"}},
    "48 channels": {"streams.image.channels": 48},
    "24 channels": FEW,
    "24 channels, 2,000 steps": FEW | LONGER,
    "learned rate": LEARNED,
    "learned rate, 2,000 steps": LEARNED | LONGER,
    "learned rate, coarse gradients": LEARNED | COARSE,
    "learned rate, coarse gradients, 2,000 steps": LEARNED | LONGER | COARSE,
}


def main() -> None:
    options = options_of(__doc__, POINTS)
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
            summary = summary_of(run)
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
