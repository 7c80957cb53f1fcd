"""The learned rate beside fixed 2-bit RD-FSQ: bytes up at equal loss, and one model asked at several rates.

    python benchmarks/learned_rate.py --demo runs/demo --json docs/results/learned_rate.json [--points "several rates"]
        [--seeds 0 1 2]

After `make demo`: trains the demo's recipe with each point's settings and seeds, across two processes over TLS, and
asks each trained pair the test questions at each of its rates. Fixed 2 bits are the demo's own recipe, with seed 0 its
own coded run. A run that is finished already is read, not repeated. Rows of points that are not named stay. Nothing
here was tuned on the test questions.

loss             mean of the last 100 steps, nats an answer token, with the standard error of that mean; training goes
                 through its questions more than once, so runs of different lengths do not compare by it
test_loss        of the test questions, nats an answer token, at the first of its rates
image_bytes      payloads of the image codes, in training
news_bytes       all else that went up: text, statistics, directions, tables, frames
predicted_bytes  what the tables in use say of those payloads
curve            each hundred steps: mean loss, payload bytes an image and what was predicted
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from processes import RECIPE, Settings, about_run, options_of, steps_of, summary_of, train
from rates import ask, stored_features, with_image
from traffic import LEARNED, LONGER, told

from bitseam import config
from bitseam.api.recipes import locate
from bitseam.data.batches import Batches
from bitseam.data.rows import Row, read_rows
from bitseam.runs.checkpoint import load_pair, newest
from bitseam.text.prompts import Prompter

FIXED, LEARNT = "fixed 2 bits", "learned rate"
POINTS: dict[str, Settings] = {
    FIXED: {},
    LEARNT: LEARNED,
    f"{LEARNT}, 2,000 steps": LEARNED | LONGER,
    "several rates": LEARNED | {"streams.image.rates": [1, 0.6, 1.6]},
}
OWN = {FIXED: "coded"}  # what `benchmarks/traffic.py` calls it
PART = 100  # steps
ABOUT = ("machine", "versions", "threads", "commit", "command", "date")


def main() -> None:
    options = options_of(__doc__, POINTS)
    kept = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    rows = {(row["point"], row["seed"]): row for row in kept}
    report = json.loads((options.demo / "report.json").read_text())
    for seed in options.seeds:
        for name in options.points:
            own = (name, seed) == (FIXED, 0)
            run = options.demo / "coded" if own else train(options.demo, OWN.get(name, name), POINTS[name], seed)
            about = {part: report[part] for part in ABOUT} if own else about_run(run)
            rows[name, seed] = {"point": name, "seed": seed} | row(options.demo, run, POINTS[name]) | about
            options.json.write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")
    show(rows)


def row(demo: Path, run: Path, settings: Settings) -> dict[str, Any]:
    """What a trained point sent, what it learned, and how it answers at each of its rates."""
    summary, steps = summary_of(run), steps_of(run)
    sent = {(r["kind"], r["part"].partition(" (")[0]): r for r in summary["ledger"] if r["direction"] == "up"}
    image = sent["Forward", "image"]
    per_image = 2 * 16 * 288  # bytes at fp16: the ledger's way of counting images
    images = image["fp16_bytes"] / per_image
    last = [step["loss"] for step in steps[-PART:]]
    recipe = config.load_recipe(RECIPE, settings)
    tests = read_rows(demo / "questions" / "test.jsonl")
    asked = []
    for rate, multiple in enumerate(recipe.streams["image"].rates):
        size, tasks = ask(with_image(recipe, rate=rate), run, tests)
        pictures = sum(1 for _ in groupby(test.image for test in tests))
        asked.append({"rate": rate, "multiple": multiple, "bytes_per_image": size / pictures, "tasks": tasks})
    parts = [steps[i : i + PART] for i in range(0, len(steps), PART)]
    return {
        "settings": settings,
        "steps": len(steps),
        "images": images,
        "loss": mean(last),
        "loss_error": stdev(last) / len(last) ** 0.5,
        "test_loss": loss_on_test(run, tests),
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


@torch.no_grad()
def loss_on_test(run: Path, tests: Sequence[Row], rate: int = 0) -> float:
    """Nats an answer token of a run's last pair, where the server sees the levels that cross at a rate."""
    client, server, recipe, _ = load_pair(newest(run, "client"), newest(run, "server"), locate)
    client.eval(), server.eval()
    client.senders()["image"].use(rate)
    draw = Batches(
        tests, stored_features(client.vision, tests), Prompter(recipe.text, locate), recipe.train.batch, recipe.seed
    )
    total, answers = 0.0, 0
    for number in range(len(tests) // recipe.train.batch):
        tower, text = draw(number)
        levels = {name: quantized.levels for name, quantized in client(tower, text).items()}
        total += float(server.loss(text, levels))
        answers += int(text.answers.sum())
    return total / answers


def show(rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Tables on the screen."""
    for (name, seed), row in rows.items():
        size = row["image_bytes"] / row["images"]
        both = f"up {row['up_bytes'] / 1e6:.2f} MB, down {row['down_bytes'] / 1e6:.2f} MB"
        loss = f"{row['loss']:.3f} ± {row['loss_error']:.3f}"
        print(f"{name:14} seed {seed} loss {loss}  {size:6.1f} bytes an image; {both}")
        for asked in row["asked"]:
            shares = [f"{task} {told(score['correct'], score['total'])}" for task, score in asked["tasks"].items()]
            print(
                f"    step x {asked['multiple']:g}: {asked['bytes_per_image']:6.1f} bytes an image  {'  '.join(shares)}"
            )
    for point in POINTS:
        over = [
            row["loss"] - rows[FIXED, seed]["loss"]
            for (name, seed), row in rows.items()
            if name == point != FIXED and (FIXED, seed) in rows
        ]
        if len(over) > 1:
            error = stdev(over) / len(over) ** 0.5
            print(f"{point} over {FIXED}: {mean(over):+.4f} ± {error:.4f} nats, {len(over)} seeds")


if __name__ == "__main__":
    main()
