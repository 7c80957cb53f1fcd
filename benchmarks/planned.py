"""What `bitseam plan` predicts for the demo's pair, and what a run that is trained anew with the plan then sends.

    python benchmarks/planned.py --demo runs/demo --json docs/results/planned.json [--bits 1]

After `make demo`: plans the demo's coded pair for so many bits an element of features, and trains the demo's recipe
from the start with that plan, across two processes over TLS. Nothing here was tuned on the test questions.

predicted, measured  of the plan: bits an element on the questions it was chosen on, and on others; loss increase of the
                     frozen pair likewise, nats an answer token, with its standard error
sent_bits            of the image codes in training: payload bits an element
tables_bits          what the tables in use said of those payloads
curve                each hundred steps: mean loss, bits an element sent
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from statistics import mean

from processes import RECIPE, about_run, command, steps_of, summary_of, train
from traffic import told

from bitseam import config
from bitseam.runs.checkpoint import newest

PART = 100  # steps
KEPT = ("predicted_bits", "measured_bits", "loss", "predicted_loss_increase", "measured_loss_increase")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--bits", type=float, default=1.0)
    options = parser.parse_args()
    name = f"planned for {options.bits:g} bits"
    plan = make_plan(options.demo, options.demo / f"plan-{options.bits:g}", options.bits)
    run = train(options.demo, name, {}, 0, plan / "plan.toml")
    said = json.loads((plan / "plan.json").read_text())
    figures = about_run(run) | {"plan": {part: said[part] for part in KEPT}} | sent(run, plan / "plan.toml")
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    off = figures["sent_bits"] / said["predicted_bits"] - 1
    print(f"bits an element: predicted {said['predicted_bits']:.3f}, sent {figures['sent_bits']:.3f} ({off:+.1%})")
    print("  ".join(f"{task} {told(score['correct'], score['total'])}" for task, score in figures["tasks"].items()))


def make_plan(demo: Path, out: Path, bits: float) -> Path:
    """The folder of a plan of the demo's coded pair."""
    if not (out / "plan.toml").exists():
        halves = [word for side in ("client", "server") for word in (f"--{side}", str(newest(demo / "coded", side)))]
        data = {"data.train": f"{demo}/questions/train.jsonl"}
        subprocess.run(command("plan", RECIPE, data, *halves, "--bits", str(bits), "--out", str(out)), check=True)
    return out


def sent(run: Path, plan: Path) -> dict:
    """What a run's image codes took, and how it went."""
    summary, steps = summary_of(run), steps_of(run)
    recipe = config.load_recipe(RECIPE, {}, plan)
    image = next(row for row in summary["ledger"] if row["direction"] == "up" and row["part"].startswith("image"))
    width = recipe.seam.width
    elements = image["fp16_bytes"] / 2 / width * (recipe.streams["image"].channels or width)
    each = elements / len(steps)
    parts = [steps[start : start + PART] for start in range(0, len(steps), PART)]
    return {
        "sent_bits": 8 * image["bytes"] / elements,
        "tables_bits": 8 * sum(step["predicted_bytes"] for step in steps) / elements,
        "curve": [
            {
                "step": part[-1]["step"],
                "loss": mean(step["loss"] for step in part),
                "bits": 8 * mean(step["coded_bytes"] for step in part) / each,
            }
            for part in parts
        ],
        **{name: summary[name] for name in ("up_bytes", "down_bytes", "socket_bytes", "tasks")},
    }


if __name__ == "__main__":
    main()
