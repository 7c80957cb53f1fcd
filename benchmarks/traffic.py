"""Whole-step traffic against accuracy: the demo's training at fewer and fewer bits.

    python benchmarks/traffic.py --demo runs/demo --json docs/results/traffic.json [--points "48 channels"]
        [--seeds 0 1]

After `make demo`: trains and evaluates the demo's recipe with each point's settings, across two processes over TLS, and
writes a row a point, seed and task beside those of the demo's own two runs (`coded` and `fp16` at seed 0), whose fp16
bytes are the ones compared with; and a picture beside FILE. A run that is finished already is read, not repeated. Rows
of points that are not named stay. FILE keeps which questions each run answered rightly (`marks`), and how each point
compares with fp16 over the seeds that both have (`comparisons`, by `bitseam.evals.compare`); rows from before that
have no comparison. Nothing here was tuned on the test questions.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from processes import Settings, about_run, options_of, summary_of, train

from bitseam.cli.machine import circumstances
from bitseam.data.rows import read_rows
from bitseam.evals.answers import wilson
from bitseam.evals.compare import Comparison, compare
from bitseam.evals.marks import Marks, joined, mark, packed, unpacked
from bitseam.evals.report import told_difference

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
    written = json.loads(options.json.read_text()) if options.json.exists() else {"rows": []}
    questions = read_rows(options.demo / "questions" / "test.jsonl")
    own = ("fp16", "coded")
    points = {(f"demo {name}", 0): (report["traffic"][name], report["commit"]) for name in own}
    tasks = {(f"demo {name}", 0): {task: score[name] for task, score in report["tasks"].items()} for name in own}
    runs = [replace(side, name=f"demo {name}") for name, side in unpacked(report["marks"]).items()]
    for name in options.points:
        for seed in options.seeds:
            if (f"demo {name}", seed) in points:
                continue
            run = train(options.demo, name, POINTS[name], seed)
            summary = summary_of(run)
            points[f"demo {name}", seed] = summary, about_run(run)["commit"]
            tasks[f"demo {name}", seed] = summary["tasks"]
            runs.append(mark(f"demo {name}", seed, questions, summary["answers"]))
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
    rows += [row for row in written["rows"] if (row["recipe"], row["seed"]) not in points]
    rows.sort(key=fewer)
    sides = together(runs, unpacked(written["marks"]) if "marks" in written else {})
    comparisons = compared(sides)
    figures = {
        **circumstances(report["threads"]),
        "points": POINTS,
        "rows": rows,
        "marks": packed(list(sides.values())),
        "comparisons": {name: comparison.as_json() for name, comparison in comparisons.items()},
    }
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    show(rows)
    for name, comparison in comparisons.items():
        print(f"{name}, {len(comparison.seeds)} seeds: {told_difference(comparison.mean)}; {comparison.verdict}")
    draw(rows, options.json.with_suffix(".png"))


def together(runs: list[Marks], kept: dict[str, Marks]) -> dict[str, Marks]:
    """Each point's runs of all seeds: these, and those that were kept of other points and seeds."""
    found = {(run.name, seed): run.at([seed]) for run in [*kept.values(), *runs] for seed in run.seeds}
    return {name: joined([run for (of, _), run in found.items() if of == name]) for name, _ in found}


def compared(sides: dict[str, Marks]) -> dict[str, Comparison]:
    """Each point against fp16, over the seeds that both have; without those that have none in common."""
    fp16 = sides["demo fp16"]
    common = {name: sorted(set(side.seeds) & set(fp16.seeds)) for name, side in sides.items() if side is not fp16}
    return {name: compare(sides[name].at(seeds), fp16.at(seeds)) for name, seeds in common.items() if seeds}


def show(rows: list[dict]) -> None:
    """A table on the screen."""
    for row in rows:
        traffic = f"{(row['up_bytes'] + row['down_bytes']) / 1e6:8.2f} MB {fewer(row):6.1f} times fewer"
        accuracy = told(row["correct"], row["total"])
        print(f"{row['recipe']:12} seed {row['seed']} {traffic}  {row['task']:12} {accuracy}")


def draw(rows: list[dict], path: Path) -> None:
    """Accuracy against how many times fewer bytes than fp16, a panel a task and a dot a run.

    Each run with the 95 % interval of its own accuracy, over questions; two runs are not compared by whether such
    intervals overlap.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for axes, task in zip(figure.subplots(1, len(tasks)), tasks, strict=True):
        of_task = [row for row in rows if row["task"] == task]
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
