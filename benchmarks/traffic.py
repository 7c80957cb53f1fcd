"""Whole-step traffic against accuracy: the demo's training at fewer and fewer bits.

    python benchmarks/traffic.py --demo runs/demo --json docs/results/traffic.json [--points "48 channels"]
        [--seeds 0 1]

After `make demo`: trains and evaluates the demo's recipe with each point's settings, across two processes over TLS, and
writes a row a point, seed and task beside those of the demo's own two runs (`coded` and `fp16` at seed 0), whose fp16
bytes are the ones compared with. A run that is finished already is read, not repeated. Rows of points that are not
named stay. Nothing here was tuned on the test questions.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import torch

from bitseam.cli.machine import circumstances, free_port
from bitseam.evals.answers import wilson

RECIPE = Path("recipes/demo.toml")
LEARNED = (
    "seam.image_up.quantizer=rate-fsq",
    "seam.image_up.coding=entropy",
    "seam.image_up.levels=21",
    "seam.image_up.clip=25",  # a step of two and a half deviations
    "seam.image_up.groups=16",
    "seam.image_up.contexts=5",
    "seam.image_up.distortion_weight=0.01",
)
POINTS = {
    "coded": (),
    "fp16": ("seam.image_up.quantizer=fp16", "seam.image_down.codec=fp16"),
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
    about = circumstances(report["threads"])
    options.json.write_text(json.dumps({**about, "points": POINTS, "rows": rows}, indent=1) + "\n")
    show(rows)


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
        fp16, own = row["fp16_up_bytes"] + row["fp16_down_bytes"], row["up_bytes"] + row["down_bytes"]
        accuracy = told(row["correct"], row["total"])
        fewer = f"{own / 1e6:8.2f} MB {fp16 / own:6.1f} times fewer"
        print(f"{row['recipe']:12} seed {row['seed']} {fewer}  {row['task']:12} {accuracy}")


def told(correct: int, total: int) -> str:
    """An accuracy with its 95 % interval."""
    low, high = wilson(correct, total)
    return f"{correct / total:.1%} ({low:.1%} to {high:.1%})"


if __name__ == "__main__":
    main()
