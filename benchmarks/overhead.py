"""What surviving costs a training run of the demo's size, over loopback with mutual TLS.

    python benchmarks/overhead.py [--recipe recipes/demo.toml] [--json FILE]

checkpoint_overhead    one checkpoint of both halves, over the steps between two of them
exactly_once_overhead  knowing a repeated Forward when it comes, over a step. Its answer is kept as it is: no time
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from processes import RECIPE
from step import make_batch, serving

from bitseam.api.opening import open_session
from bitseam.api.recipes import locate
from bitseam.checks.client import ready_client
from bitseam.cli.machine import circumstances
from bitseam.sessions.server import digest
from bitseam.train import Training
from bitseam.wire import messages_pb2 as pb

WARM, STEPS, CHECKPOINTS, DIGESTS = 5, 15, 5, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(options.recipe)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures | circumstances(figures["threads"]), indent=1) + "\n")


def measure(path: Path) -> dict[str, Any]:
    """Medians, in seconds, and their shares of a step's time. Writes where the recipe's own runs would."""
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=runs) as folder,
        serving(path, Path(folder), {}) as recipe,
        open_session(recipe, ready_client(recipe, locate, "ask"), training=True) as session,
    ):
        features, text = make_batch(recipe, session.model)
        training = Training(session, recipe, lambda _: (features, text), shown=False)
        training.begin()

        def step() -> None:
            training.step(training.draw())

        steps = [_seconds(step) for _ in range(WARM + STEPS)][WARM:]
        checkpoints = []
        for _ in range(CHECKPOINTS):
            checkpoints.append(_seconds(training.save))
            step()
        sizes = [row for row in session.ledger.rows() if row["kind"] == "Forward"]
        size = sum(int(row["bytes"]) for row in sizes) // max(int(row["messages"]) for row in sizes)
    forward = pb.Forward(streams=[pb.Coded(payload=os.urandom(size))])
    digests = [_seconds(lambda: digest(forward)) for _ in range(DIGESTS)]
    every = recipe.train.checkpoint_every
    return {
        "step_s": median(steps),
        "checkpoint_s": median(checkpoints),
        "checkpoint_every": every,
        "forward_bytes": size,
        "digest_s": median(digests),
        "checkpoint_overhead": median(checkpoints) / (every * median(steps)),
        "exactly_once_overhead": recipe.train.accumulate * median(digests) / median(steps),
        "threads": recipe.threads,
    }


def _seconds(what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
