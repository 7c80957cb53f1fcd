"""The learned rate beside fixed 2-bit RD-FSQ: bytes up at equal loss, and one model asked at several rates.

    python benchmarks/learned_rate.py --demo runs/demo --json docs/results/learned_rate.json [--points "several rates"]

After `make demo`: trains the demo's recipe with each point's settings, across two processes over TLS, and asks each
trained pair the test questions at each of its rates. Beside them stands the demo's own coded run, of fixed 2 bits. Rows
of points that are not run again stay. Nothing here was tuned on the test questions.

loss             mean of the last 100 steps, nats an answer token, with the standard error of that mean
image_bytes      payloads of the image codes, in training
news_bytes       all else that went up: text, statistics, directions, tables, frames
predicted_bytes  what the tables in use say of those payloads
curve            each hundred steps: mean loss, payload bytes an image and what was predicted
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rates import ask
from traffic import LEARNED, RECIPE, told, train

from bitseam import config
from bitseam.cli.machine import circumstances
from bitseam.data.rows import read_rows

POINTS = {"learned rate": LEARNED, "several rates": (*LEARNED, "seam.image_up.rates=[1, 0.6, 1.6]")}
FIXED = "fixed 2 bits"
PART = 100  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--points", nargs="*", default=list(POINTS), choices=list(POINTS))
    options = parser.parse_args()
    figures = json.loads(options.json.read_text()) if options.json.exists() else {"rows": {}}
    about = circumstances(torch.get_num_threads())
    if FIXED not in figures["rows"]:
        figures["rows"][FIXED] = row(options.demo, options.demo / "coded", ())
    for name in options.points:
        train(options.demo, name, POINTS[name])
        figures["rows"][name] = row(options.demo, options.demo / name.replace(" ", "-"), POINTS[name]) | about
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    show(figures["rows"])


def row(demo: Path, run: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    """What a trained point sent, what it learned, and how it answers at each of its rates."""
    summary = json.loads((run / "client" / "summary.json").read_text())
    steps = [json.loads(line) for line in (run / "client" / "log.jsonl").read_text().splitlines()]
    sent = {(r["kind"], r["part"].partition(" (")[0]): r for r in summary["ledger"] if r["direction"] == "up"}
    image = sent["Forward", "image"]
    per_image = 2 * 16 * 288  # bytes at fp16: the ledger's way of counting images
    images = image["fp16_bytes"] / per_image
    last = [step["loss"] for step in steps[-PART:]]
    recipe = config.load_recipe(RECIPE, dict(_parsed(setting) for setting in settings))
    tests = read_rows(demo / "questions" / "test.jsonl")
    asked = []
    for rate, multiple in enumerate(recipe.seam.image_up.rates):
        at = replace(recipe, seam=replace(recipe.seam, image_up=replace(recipe.seam.image_up, rate=rate)))
        size, tasks = ask(at, run, tests)
        pictures = sum(1 for _ in groupby(test.image for test in tests))
        asked.append({"rate": rate, "multiple": multiple, "bytes_per_image": size / pictures, "tasks": tasks})
    parts = [steps[i : i + PART] for i in range(0, len(steps), PART)]
    return {
        "settings": settings,
        "seed": recipe.seed,
        "steps": len(steps),
        "images": images,
        "loss": mean(last),
        "loss_error": stdev(last) / len(last) ** 0.5,
        **{name: summary[name] for name in ("up_bytes", "down_bytes", "socket_bytes")},
        "image_bytes": image["bytes"],
        "news_bytes": sum(entry["bytes"] for (_, part), entry in sent.items() if part == "rest"),
        "predicted_bytes": sum(step.get("predicted_bytes", 0.0) for step in steps) or None,
        "curve": [
            {
                "step": part[-1]["step"],
                "loss": mean(step["loss"] for step in part),
                **{
                    name: sum(step.get(name, 0) for step in part) * len(steps) / (len(part) * images)
                    for name in ("coded_bytes", "predicted_bytes")
                },
            }
            for part in parts
        ],
        "asked": asked,
    }


def _parsed(setting: str) -> tuple[str, Any]:
    key, _, value = setting.partition("=")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def show(rows: dict[str, Any]) -> None:
    """Tables on the screen."""
    fixed = rows[FIXED]["image_bytes"] / rows[FIXED]["images"]
    for name, row in rows.items():
        size = row["image_bytes"] / row["images"]
        both = f"up {row['up_bytes'] / 1e6:.2f} MB, down {row['down_bytes'] / 1e6:.2f} MB"
        shown = f"{size:6.1f} bytes an image in training, {fixed / size:.1f} times fewer"
        print(f"{name:14} loss {row['loss']:.3f} ± {row['loss_error']:.3f}  {shown}; all {both}")
        for asked in row["asked"]:
            shares = [f"{task} {told(score['correct'], score['total'])}" for task, score in asked["tasks"].items()]
            print(
                f"    step x {asked['multiple']:g}: {asked['bytes_per_image']:6.1f} bytes an image  {'  '.join(shares)}"
            )


if __name__ == "__main__":
    main()
