"""What the client's commands do: put model, data and session together."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bitseam import config
from bitseam.data.assets import cache_folder, require_cache
from bitseam.data.batches import Batches
from bitseam.data.features import Features, LiveFeatures, StoredFeatures
from bitseam.data.images import open_image
from bitseam.data.rows import Row, read_rows
from bitseam.errors import ConfigError
from bitseam.evals import evaluate, wilson
from bitseam.parties.byproducts import Byproduct
from bitseam.parties.checkpoint import Identity, Locate, build_client, held, load_client, newest
from bitseam.parties.claim import claimed
from bitseam.parties.client import ClientSession
from bitseam.parties.device import choose_device
from bitseam.parties.ledger import Ledger
from bitseam.parties.models import ClientModel
from bitseam.parties.prompts import Prompter
from bitseam.parties.runlog import peak_memory
from bitseam.parties.seam import build_seam, terms
from bitseam.parties.stopping import TERMINATED, told_by
from bitseam.train import train
from bitseam.transport import Tls, connect

log = logging.getLogger(__name__)
stdout = Console()
_GRACE = 30.0  # seconds that the step under way may take until a signal ends the process all the same


@dataclass
class Party:
    """The client's half and its open session."""

    model: ClientModel
    prompter: Prompter
    session: ClientSession


@contextmanager
def open_party(recipe: config.Recipe, locate: Locate, checkpoint: Path | None, training: bool) -> Iterator[Party]:
    """Build or load the client half, connect, and shake hands."""
    torch.manual_seed(recipe.seed)
    identity = Identity("", 0)
    if checkpoint is None:
        model = build_client(recipe, locate)
    else:
        model, _, identity = load_client(checkpoint, locate, recipe.seam)
    model.to(choose_device(recipe.device))
    prompter = Prompter(recipe.text, locate)
    network = recipe.network
    tls = Tls.from_folder(network.certificates, "client").require_current() if network.certificates else None
    exposed = network.plaintext_that_anyone_can_read_and_change
    dial = partial(connect, network.address, tls, network.keepalive, exposed)
    seam, patience = build_seam(recipe.seam), network.patience
    with ClientSession(model, seam, dial, prompter.vocabulary, recipe.train.autocast, patience) as session:
        agreed = terms(recipe, prompter.vocabulary, prompter.fingerprint, None if training else str(identity))
        session.open(agreed, training, partial(held, recipe, "client"))
        yield Party(model, prompter, session)


def run_training(recipe: config.Recipe, locate: Locate) -> None:
    """`bitseam train`: train, or go on where OUT/client ends; evaluate on the test file if there is one, and write
    OUT/client/summary.json."""
    with claimed(recipe.folder, "client"):
        stopped = _run_training(recipe, locate)
    if stopped is not None:
        sys.exit(128 + stopped)  # as of who is ended by it


def _run_training(recipe: config.Recipe, locate: Locate) -> signal.Signals | None:
    """The signal that has stopped it before its end."""
    held(recipe, "client")  # a folder of another recipe is told before anything else is loaded
    _require_room(recipe)
    rows, tests = read_rows(recipe.data.train), read_rows(recipe.data.test) if recipe.data.test else []
    with open_party(recipe, locate, None, training=True) as party:
        features = _features(party, recipe, [*rows, *tests])
        batches = Batches(rows, features, party.prompter, recipe.train.batch, recipe.seed)
        start = time.perf_counter()
        with told_by(TERMINATED, _GRACE) as told:
            checkpoint = train(party.session, recipe, batches, told)
        if told.by is not None and party.session.reached < recipe.train.steps:
            where = f"step {party.session.reached}, which both sides have written"
            log.warning("stopped by %s after %s; the same command goes on from there", told.by.name, where)
            return told.by
        seconds = time.perf_counter() - start
        ledger, socket = party.session.ledger, party.session.socket_bytes()
        summary = {
            "run": party.session.run,
            "steps": recipe.train.steps,
            "train_seconds": seconds,
            "up_bytes": ledger.total("up").bytes,
            "down_bytes": ledger.total("down").bytes,
            "fp16_up_bytes": ledger.total("up").fp16_bytes,
            "fp16_down_bytes": ledger.total("down").fp16_bytes,
            "socket_bytes": sum(socket) if socket is not None else None,
            "ledger": ledger.rows(),
        }
        show_ledger(ledger, socket)
        if tests:
            summary |= _evaluate(party, features, tests, recipe)
        summary["parameters"] = sum(p.numel() for p in party.model.parameters())
    summary["peak_memory_bytes"] = peak_memory()
    summary["checkpoint"] = str(checkpoint)
    Byproduct(recipe.folder / "client" / "summary.json").replace(json.dumps(summary, indent=1))
    stdout.print(f"The client's half is in {checkpoint}; curves: tensorboard --logdir {recipe.folder}")
    return None


def run_evaluation(recipe: config.Recipe, locate: Locate, checkpoint: Path | None) -> None:
    """`bitseam evaluate`: score the recipe's test file."""
    if not recipe.data.test:
        raise ConfigError("data.test is empty: name a file of questions to evaluate on")
    _require_room(recipe)
    rows = read_rows(recipe.data.test)
    with open_party(recipe, locate, checkpoint or newest(recipe.folder, "client"), training=False) as party:
        _evaluate(party, _features(party, recipe, rows), rows, recipe)
        show_ledger(party.session.ledger, party.session.socket_bytes())


def run_question(
    recipe: config.Recipe, locate: Locate, image: Path, question: str, checkpoint: Path | None, max_new_tokens: int
) -> str:
    """`bitseam ask`: print the answer as it comes; returns it."""
    row = Row(image, question, "")
    open_image(image)  # a bad file is told before anything else is loaded
    with open_party(recipe, locate, checkpoint or newest(recipe.folder, "client"), training=False) as party:
        features = LiveFeatures(party.model.vision).of([row.image])
        text = party.prompter.batch([question])
        ids: list[int] = []
        shown = ""
        for token in party.session.ask(features, text, max_new_tokens):
            ids += token
            answer = party.prompter.decode(ids)
            print(answer[len(shown) :], end="", flush=True)
            shown = answer
        print()
        codes = party.session.ledger.coded_bytes("Ask", "image")
        Console(stderr=True).print(
            f"the image went up as {codes:,} bytes of codes; its file has {os.path.getsize(image):,}"
        )
    return shown


def show_ledger(ledger: Ledger, socket: tuple[int, int] | None) -> None:
    """The byte ledger as a table."""
    table = Table("direction", "message", "part", "messages", "MB", "MB at fp16", "times less", title="What crossed")
    for row in ledger.rows():
        size, fp16 = int(row["bytes"]), int(row["fp16_bytes"])
        cells = [f"{row['messages']:,}", f"{size / 1e6:.3f}", f"{fp16 / 1e6:.3f}", f"{fp16 / max(size, 1):.2f}"]
        table.add_row(str(row["direction"]), str(row["kind"]), str(row["part"]), *cells)
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


def _stores_features(recipe: config.Recipe) -> bool:
    return recipe.data.cache_features and not recipe.client.tune_vision


def _require_room(recipe: config.Recipe) -> None:
    """Raise AssetError where features are to be kept and cannot be."""
    if _stores_features(recipe):
        require_cache("features")


def _features(party: Party, recipe: config.Recipe, rows: list[Row]) -> Features:
    if not _stores_features(recipe):
        return LiveFeatures(party.model.vision)
    settings = {
        name: value for name, value in asdict(recipe.client).items() if name not in ("rate", "connector_hidden")
    }
    return StoredFeatures(party.model.vision, settings, rows, cache_folder() / "features")


def _evaluate(party: Party, features: Features, rows: list[Row], recipe: config.Recipe) -> dict[str, object]:
    result = evaluate(party.session, party.prompter, rows, features.of)
    table = Table("task", "correct", "of", "accuracy", "95 % interval", title="Accuracy")
    for task, score in result.scores.items():
        low, high = wilson(score.correct, score.total)
        share = score.correct / score.total
        table.add_row(task, str(score.correct), str(score.total), f"{share:.1%}", f"{low:.1%} to {high:.1%}")
    stdout.print(table)
    return {"tasks": {task: asdict(score) for task, score in result.scores.items()}, "answers": result.answers}
