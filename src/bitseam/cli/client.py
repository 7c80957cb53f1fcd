"""What the client's commands print of a `Client`, and write beside its checkpoints."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from bitseam import config
from bitseam.api.client import Client
from bitseam.console import Terminal, plain
from bitseam.data.images import open_crops
from bitseam.errors import ConfigError, printable
from bitseam.evals import wilson
from bitseam.runs.byproducts import Byproduct
from bitseam.runs.runlog import peak_memory
from bitseam.runs.stopping import TERMINATED, told_by
from bitseam.sessions.ledger import Ledger

log = logging.getLogger(__name__)
stdout = Terminal()
_GRACE = 30.0  # seconds that the step under way may take until a signal ends the process all the same


def run_training(recipe: config.Recipe) -> None:
    """`bitseam train`: train, or go on where OUT/client ends; evaluate on the test file if there is one, and write
    OUT/client/summary.json."""
    with Client.open(recipe, purpose="train", progress=True) as client:
        stopped = _train(client, recipe)
    if stopped is not None:
        sys.exit(128 + stopped)  # as of who is ended by it


def _train(client: Client, recipe: config.Recipe) -> signal.Signals | None:
    """The signal that has stopped it before its end."""
    start = time.perf_counter()
    with told_by(TERMINATED, _GRACE) as told:
        checkpoint = client.train(callbacks=[lambda record: told()])
    if told.by is not None and client.reached < recipe.train.steps:
        where = f"step {client.reached}, which both sides have written"
        log.warning("stopped by %s after %s; the same command goes on from there", told.by.name, where)
        return told.by
    seconds = time.perf_counter() - start
    sent, received, socket = client.sent, client.received, client.socket_bytes
    summary = {
        "run": client.run,
        "seed": recipe.seed,
        "steps": recipe.train.steps,
        "train_seconds": seconds,
        "up_bytes": sent.bytes,
        "down_bytes": received.bytes,
        "fp16_up_bytes": sent.fp16_bytes,
        "fp16_down_bytes": received.fp16_bytes,
        "socket_bytes": sum(socket) if socket is not None else None,
        "ledger": client.ledger.rows(),
        "bad_rows": client.bad_rows,
        "parameters": sum(p.numel() for p in client.model.parameters()),
        "checkpoint": str(checkpoint),
    }
    path = Byproduct(recipe.folder / "client" / "summary.json")
    path.replace(json.dumps(summary, indent=1))  # the training is told, whatever becomes of the evaluation
    show_ledger(client.ledger, socket)
    if recipe.data.test:
        summary |= _evaluate(client)
    summary["peak_memory_bytes"] = peak_memory()
    path.replace(json.dumps(summary, indent=1))
    stdout.print(f"The client's half is in {checkpoint}; curves: tensorboard --logdir {recipe.folder}")
    return None


def run_evaluation(recipe: config.Recipe, checkpoint: Path | None) -> None:
    """`bitseam evaluate`: score the recipe's test file."""
    with Client.open(recipe, checkpoint, purpose="evaluate", progress=True) as client:
        _evaluate(client)
        show_ledger(client.ledger, client.socket_bytes)


def run_question(
    recipe: config.Recipe, path: Path, question: str, checkpoint: Path | None, max_new_tokens: int
) -> None:
    """`bitseam ask`: print the answer as it comes."""
    if max_new_tokens > (most := recipe.text.most_new_tokens):
        raise ConfigError(f"--max-new-tokens {max_new_tokens}: the server gives {most} at the most (text.max_tokens)")
    open_crops(path, recipe.client.crops)  # a bad file is told before anything else is loaded
    with Client.open(recipe, checkpoint) as client:
        answer = client.stream(path, question, max_new_tokens)
        for piece in answer:
            _write(piece)
        _write("\n")
        codes, size = answer.sent.parts.get("image", 0), os.path.getsize(path)
        Terminal(stderr=True).print(f"the image went up as {codes:,} bytes of codes; its file has {size:,}")


def _write(text: str) -> None:
    """To standard output, and at once; a model's control characters are spelt out there."""
    sys.stdout.write(printable(text, None, lines=True))
    sys.stdout.flush()


def show_ledger(ledger: Ledger, socket: tuple[int, int] | None) -> None:
    """The byte ledger as a table."""
    table = Table("direction", "message", "part", "messages", "MB", "MB at fp16", "times less", title="What crossed")
    for row in ledger.rows():
        size, fp16 = int(row["bytes"]), int(row["fp16_bytes"])
        cells = [f"{row['messages']:,}", f"{size / 1e6:.3f}", f"{fp16 / 1e6:.3f}", f"{fp16 / max(size, 1):.2f}"]
        table.add_row(*(plain(str(row[name])) for name in ("direction", "kind", "part")), *cells)
    whole = ledger.total()
    ratio = f"{whole.fp16_bytes / max(whole.bytes, 1):.2f}"
    table.add_section()
    table.add_row(
        "both", "all", "", f"{whole.messages:,}", f"{whole.bytes / 1e6:.3f}", f"{whole.fp16_bytes / 1e6:.3f}", ratio
    )
    stdout.print(table)
    if socket is not None:
        stdout.print(
            f"On the socket, TLS and HTTP/2 included: {socket[0] / 1e6:.3f} MB up, {socket[1] / 1e6:.3f} MB down"
        )


def _evaluate(client: Client) -> dict[str, object]:
    result = client.evaluate()
    table = Table("task", "correct", "of", "accuracy", "95 % interval", title="Accuracy")
    for task, score in result.scores.items():
        low, high = wilson(score.correct, score.total)
        interval = f"{low:.1%} to {high:.1%}"
        table.add_row(plain(task), str(score.correct), str(score.total), f"{score.accuracy:.1%}", interval)
    stdout.print(table)
    if result.beyond:
        stdout.print(
            f"{result.beyond} right answers have more tokens than text.max_answer_tokens, "
            f"{client.recipe.text.max_answer_tokens}: no answer can be theirs"
        )
    return {"tasks": {task: asdict(score) for task, score in result.scores.items()}, "answers": result.answers}
