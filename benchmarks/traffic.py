"""Whole-step traffic against accuracy: the demo's training at fewer and fewer bits.

    python benchmarks/traffic.py --demo runs/demo --json docs/results/traffic.json [--points "48 channels"]

After `make demo`: trains and evaluates the demo's recipe with each point's settings, across two processes over TLS, and
writes a row a point and task beside those of the demo's own two runs, whose fp16 bytes are the ones compared with. Rows
of points that are not run again stay. Nothing here was tuned on the test questions.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

from bitseam.cli.machine import circumstances, free_port
from bitseam.evals.answers import wilson

RECIPE = Path("recipes/demo.toml")
LEARNED = (
    "seam.image_up.quantizer=rate-fsq",
    "seam.image_up.coding=entropy",
    "seam.image_up.levels=21",
    "seam.image_up.clip=25",  # a step of two and a half deviations
    "seam.image_up.groups=32",
    "seam.image_up.distortion_weight=0.01",
)
POINTS = {
    "48 channels": ("seam.image_up.channels=48",),
    "24 channels": ("seam.image_up.channels=24", "seam.image_down.step=2"),
    "learned rate": LEARNED,
    "learned rate, coarse gradients": (*LEARNED, "seam.image_down.step=4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--points", nargs="*", default=list(POINTS), choices=list(POINTS))
    options = parser.parse_args()
    report = json.loads((options.demo / "report.json").read_text())
    kept = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    points = {f"demo {name}": (report["traffic"][name], report["commit"]) for name in ("fp16", "coded")}
    tasks = {
        f"demo {name}": {task: score[name] for task, score in report["tasks"].items()} for name in ("fp16", "coded")
    }
    about = circumstances(report["threads"])
    for name in options.points:
        summary = train(options.demo, name, POINTS[name])
        points[f"demo {name}"] = summary, about["commit"]
        tasks[f"demo {name}"] = summary["tasks"]
    fp16 = report["traffic"]["fp16"]
    rows = [
        {
            "recipe": name,
            "seed": 0,
            **{part: traffic[part] for part in ("up_bytes", "down_bytes", "socket_bytes")},
            "fp16_up_bytes": fp16["up_bytes"],
            "fp16_down_bytes": fp16["down_bytes"],
            "task": task,
            **{part: score[part] for part in ("correct", "total")},
            "commit": commit,
        }
        for name, (traffic, commit) in points.items()
        for task, score in tasks[name].items()
    ]
    rows += [row for row in kept if row["recipe"] not in points]
    options.json.write_text(json.dumps({**about, "points": POINTS, "rows": rows}, indent=1) + "\n")
    show(rows)


def train(demo: Path, name: str, point: tuple[str, ...]) -> dict:
    """Serve and train the demo's recipe with a point's settings; the client's summary."""
    out = demo / name.replace(",", "").replace(" ", "-")
    settings = [
        f"data.train={demo}/questions/train.jsonl",
        f"data.test={demo}/questions/test.jsonl",
        f"network.certificates={demo}/certs",
        f"network.address=localhost:{free_port()}",
        f"out={out}",
        *point,
    ]
    words = [str(RECIPE), *(word for setting in settings for word in ("--set", setting))]
    bitseam = [sys.executable, "-m", "bitseam.cli.main"]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "server.log").open("w") as log:
        server = subprocess.Popen([*bitseam, "serve", *words], stdout=log, stderr=log)
        try:
            subprocess.run([*bitseam, "train", *words], check=True)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    return json.loads((out / "client" / "summary.json").read_text())


def show(rows: list[dict]) -> None:
    """A table on the screen."""
    for row in rows:
        fp16, own = row["fp16_up_bytes"] + row["fp16_down_bytes"], row["up_bytes"] + row["down_bytes"]
        accuracy = told(row["correct"], row["total"])
        print(f"{row['recipe']:12} {own / 1e6:8.2f} MB {fp16 / own:6.1f} times fewer  {row['task']:12} {accuracy}")


def told(correct: int, total: int) -> str:
    """An accuracy with its 95 % interval."""
    low, high = wilson(correct, total)
    return f"{correct / total:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
