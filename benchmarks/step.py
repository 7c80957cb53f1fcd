"""One training step split over loopback with mutual TLS, against the same step unsplit in one process.

    python benchmarks/step.py [--recipe recipes/demo.toml] [--rounds 5] [--steps 12] [--json FILE]

Rounds of split and unsplit steps take turns in one run; the first round of each warms up and is dropped. Both use the
recipe's batch, features from memory, and the same number of threads; the unsplit step has no codec and no wire.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import torch
from processes import RECIPE, Settings, server

from bitseam import config
from bitseam.api.opening import open_session
from bitseam.api.recipes import locate
from bitseam.checks.client import ready_client
from bitseam.cli.machine import circumstances, free_port
from bitseam.models.client import ClientModel
from bitseam.models.proof import prove
from bitseam.runs.checkpoint import build_client, build_server
from bitseam.runs.optimise import Stepper
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter
from bitseam.transport import make_certificates

ASKED = (2, 8, 2, 8, 2)  # questions about one image after the other, as in the demo's batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        changes = {"train.steps": options.rounds * options.steps, "train.checkpoint_every": 10**9}
        with serving(options.recipe, Path(folder), changes) as recipe:
            figures = measure(recipe, options.rounds, options.steps)
        lines = (Path(folder) / "server" / "log.jsonl").read_text().splitlines()
        rows = [json.loads(line)["seconds"] for line in lines][options.steps :]
    figures["parts"] |= {f"server: {name}": median([row[name] for row in rows]) for name in rows[0]}
    # The server steps after it has answered, beside the client's backward; what the client waits of it is in "wire".
    busy = sum(figures["parts"][f"server: {name}"] for name in ("decode", "server forward and backward", "encode"))
    figures["parts"]["wire, and waiting for the server's last step"] = figures["parts"].pop("client: wait") - busy
    figures["ratio"] = figures["split_s"] / figures["unsplit_s"]
    figures |= {**circumstances(recipe.threads), "batch": recipe.train.batch}
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


@contextmanager
def serving(path: Path, folder: Path, changes: Settings) -> Iterator[config.Recipe]:
    """A server of a recipe in a process of its own, below `folder`; yields the recipe that a client of it needs."""
    make_certificates(folder / "certs")
    overrides = {
        "out": str(folder),
        "threads": os.cpu_count(),
        "network.address": f"localhost:{free_port()}",
        "network.certificates": str(folder / "certs"),
        **changes,
    }
    recipe = config.load_recipe(path, overrides)
    torch.set_num_threads(recipe.threads)
    with server(path, overrides, folder / "server.log"):
        yield recipe


def make_batch(recipe: config.Recipe, client: ClientModel) -> tuple[torch.Tensor, TextBatch]:
    """Features (I, N, Dv) and questions of the size of a micro-batch of the demo."""
    questions = [f"What is in the {place}?" for place in ("picture", "top left", "bottom right", "top right")]
    questions = [questions[i % 4] for i in range(recipe.train.batch)]
    images = list(islice((image for image, asked in enumerate(cycle(ASKED)) for _ in range(asked)), recipe.train.batch))
    text = Prompter(recipe.text, locate).batch(questions, ["automobile"] * recipe.train.batch, images)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images[-1] + 1, client.vision.tokens, client.vision.tower.width, generator=generator), text


def measure(recipe: config.Recipe, rounds: int, steps: int) -> dict:
    """Medians in seconds of split and unsplit steps that take turns."""
    exact = config.Stream(quantizer="none", codec={"id": "fp32"}, gradient={"id": "fp32"})
    plain = replace(recipe, streams={"image": exact})
    client, language = build_client(plain, locate).train(), build_server(plain, locate).train()
    language.ways = prove(language, plain).ways
    features, text = make_batch(recipe, client)
    steppers = (
        Stepper(client, recipe.client.rate, recipe.train),
        Stepper(language, recipe.server.rate, recipe.train),
    )

    def unsplit() -> None:
        language.loss(text, {"image": client.vision(features)}).backward()
        for stepper in steppers:
            stepper.step(int(text.answers.sum()))

    with open_session(recipe, ready_client(recipe, locate, "ask"), training=True) as session:
        session.calibrate(features, text)
        stepper = Stepper(session.model, recipe.client.rate, recipe.train)
        parts: list[dict[str, float]] = []
        done = 0

        def split() -> None:
            nonlocal done
            done += 1
            session.watch.seconds.clear()
            loss = session.step(done, 0, True, features, text)
            with session.watch("client step"):
                stepper.step(loss.answer_tokens)
            parts.append(dict(session.watch.seconds))

        seconds: dict[str, list[float]] = {"split": [], "unsplit": []}
        for number in range(rounds):
            for name, step in (("split", split), ("unsplit", unsplit)):
                start = time.perf_counter()
                for _ in range(steps):
                    step()
                if number:
                    seconds[name].append((time.perf_counter() - start) / steps)
    kept = parts[steps:]
    return {
        "split_s": median(seconds["split"]),
        "unsplit_s": median(seconds["unsplit"]),
        "rounds": seconds,
        "parts": {f"client: {name}": median([row[name] for row in kept]) for name in kept[0]},
    }


def show(figures: dict) -> None:
    """A table on the screen."""
    for name in ("machine", "versions", "threads", "commit", "command"):
        print(f"{name:10} {figures[name]}")
    for name, value in figures["parts"].items():
        print(f"  {name:50} {value * 1e3:9.2f} ms")
    print(
        f"split {figures['split_s'] * 1e3:.1f} ms, unsplit {figures['unsplit_s'] * 1e3:.1f} ms a step "
        f"of {figures['batch']}: {figures['ratio']:.3f} times"
    )


if __name__ == "__main__":
    main()
