"""Recipes served and trained in processes of their own, by the commands that a user types."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bitseam.cli.machine import circumstances, free_port

RECIPE = Path("recipes/demo.toml")
Settings = Mapping[str, Any]  # dotted keys of a recipe -> values


def options_of(description: str | None, points: Mapping[str, Settings]) -> argparse.Namespace:
    """The command line of what trains the demo's recipe with some of these points' settings and seeds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--points", nargs="*", default=list(points), choices=list(points))
    parser.add_argument("--seeds", nargs="*", default=[0], type=int)
    return parser.parse_args()


def train(demo: Path, name: str, point: Settings, seed: int, plan: Path | None = None) -> Path:
    """Serve and train the demo's recipe with a point's settings, over a plan where there is one; the run's folder."""
    out = run_folder(demo, name, seed)
    if (out / "client" / "summary.json").exists():
        return out
    settings = {
        "data.train": f"{demo}/questions/train.jsonl",
        "data.test": f"{demo}/questions/test.jsonl",
        "network.certificates": f"{demo}/certs",
        "network.address": f"localhost:{free_port()}",
        "out": str(out),
        "seed": seed,
        **point,
    }
    more = ["--plan", str(plan)] if plan else []
    out.mkdir(parents=True, exist_ok=True)
    (out / "about.json").write_text(json.dumps(circumstances(torch.get_num_threads())))
    with server(RECIPE, settings, out / "server.log", *more):
        subprocess.run(command("train", RECIPE, settings, *more), check=True)
    return out


@contextmanager
def server(recipe: Path, settings: Settings, log: Path, *more: str) -> Iterator[None]:
    """`bitseam serve`, its output in `log`, stopped in the end as an operator would stop it."""
    with log.open("w") as file:
        process = subprocess.Popen(command("serve", recipe, settings, *more), stdout=file, stderr=file)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def command(name: str, recipe: Path, settings: Settings, *more: str) -> list[str]:
    """`bitseam NAME RECIPE` with these settings."""
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={toml(value)}")]
    return [sys.executable, "-m", "bitseam.cli.main", name, str(recipe), *sets, *more]


def toml(value: Any) -> str:
    """A value as TOML has it: text, numbers, truth, lists and tables of them."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def run_folder(demo: Path, name: str, seed: int) -> Path:
    """Where a point's run lies."""
    return demo / (name.replace(",", "").replace(" ", "-") + f"-seed-{seed}" * (seed > 0))


def about_run(run: Path) -> dict[str, Any]:
    """Machine, versions, threads and commit of a run that `train` made."""
    return json.loads((run / "about.json").read_text())


def summary_of(run: Path) -> dict[str, Any]:
    """What the client of a run said of it in the end."""
    return json.loads((run / "client" / "summary.json").read_text())


def steps_of(run: Path) -> list[dict[str, Any]]:
    """What the client of a run logged of each step."""
    return [json.loads(line) for line in (run / "client" / "log.jsonl").read_text().splitlines()]
