"""What the client's commands do: put model, data and session together."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from bitseam import config
from bitseam.checks.client import ClientSide, ready_client, stores_features
from bitseam.console import Terminal, plain
from bitseam.data.assets import cache_folder
from bitseam.data.batches import Batches
from bitseam.data.features import Features, LiveFeatures, StoredFeatures
from bitseam.data.images import open_crops
from bitseam.data.kept import keep_rows
from bitseam.data.rows import Row, listed
from bitseam.data.survey import Survey
from bitseam.errors import ConfigError, printable
from bitseam.evals import answer_room, evaluate, wilson
from bitseam.models.client import ClientModel
from bitseam.runs.byproducts import Byproduct
from bitseam.runs.checkpoint import Locate, held, newest
from bitseam.runs.claim import claimed
from bitseam.runs.runlog import peak_memory
from bitseam.runs.stopping import TERMINATED, told_by
from bitseam.sessions.client import ClientSession
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.terms import terms
from bitseam.text.answer_stream import AnswerStream
from bitseam.text.prompts import Prompter
from bitseam.train import train
from bitseam.transport import connect

log = logging.getLogger(__name__)
stdout = Terminal()
_GRACE = 30.0  # seconds that the step under way may take until a signal ends the process all the same


@dataclass
class Party:
    """The client's half and its open session."""

    model: ClientModel
    prompter: Prompter
    session: ClientSession


@contextmanager
def open_party(recipe: config.Recipe, side: ClientSide, training: bool) -> Iterator[Party]:
    """Connect, and shake hands."""
    network, prompter = recipe.network, side.prompter
    exposed = network.plaintext_that_anyone_can_read_and_change
    dial = partial(connect, network.address, side.tls, network.keepalive, exposed)
    autocast = recipe.train.autocast
    with ClientSession(side.model, dial, prompter.vocabulary, autocast, network.patience) as session:
        weights = None if training else str(side.identity)
        agreed = terms(recipe, session.streams, prompter, weights)
        session.open(agreed, training, partial(held, recipe, "client"))
        yield Party(side.model, prompter, session)


def run_training(recipe: config.Recipe, locate: Locate) -> None:
    """`bitseam train`: train, or go on where OUT/client ends; evaluate on the test file if there is one, and write
    OUT/client/summary.json."""
    with claimed(recipe.folder, "client"):
        stopped = _run_training(recipe, locate)
    if stopped is not None:
        sys.exit(128 + stopped)  # as of who is ended by it


def _run_training(recipe: config.Recipe, locate: Locate) -> signal.Signals | None:
    """The signal that has stopped it before its end."""
    side = ready_client(recipe, locate, "train")
    found = _told(side.rows)
    keep_rows(recipe.folder / "client", found.train, found.contents, found.bad, side.begun)
    with open_party(recipe, side, training=True) as party, _features(party, recipe, found) as features:
        batches = Batches(found.train, features, side.prompter, recipe.train.batch, recipe.seed, features.ahead)
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
            "seed": recipe.seed,
            "steps": recipe.train.steps,
            "train_seconds": seconds,
            "up_bytes": ledger.total("up").bytes,
            "down_bytes": ledger.total("down").bytes,
            "fp16_up_bytes": ledger.total("up").fp16_bytes,
            "fp16_down_bytes": ledger.total("down").fp16_bytes,
            "socket_bytes": sum(socket) if socket is not None else None,
            "ledger": ledger.rows(),
            "bad_rows": len(found.bad),
            "parameters": sum(p.numel() for p in party.model.parameters()),
            "checkpoint": str(checkpoint),
        }
        path = Byproduct(recipe.folder / "client" / "summary.json")
        path.replace(json.dumps(summary, indent=1))  # the training is told, whatever becomes of the evaluation
        show_ledger(ledger, socket)
        if found.test:
            summary |= _evaluate(party, features, found.test, recipe)
    summary["peak_memory_bytes"] = peak_memory()
    path.replace(json.dumps(summary, indent=1))
    stdout.print(f"The client's half is in {checkpoint}; curves: tensorboard --logdir {recipe.folder}")
    return None


def run_evaluation(recipe: config.Recipe, locate: Locate, checkpoint: Path | None) -> None:
    """`bitseam evaluate`: score the recipe's test file."""
    if not recipe.data.test:
        raise ConfigError("data.test is empty: name a file of questions to evaluate on")
    side = ready_client(recipe, locate, "evaluate", checkpoint or newest(recipe.folder, "client"))
    found = _told(side.rows)
    with open_party(recipe, side, training=False) as party, _features(party, recipe, found) as features:
        _evaluate(party, features, found.test, recipe)
        show_ledger(party.session.ledger, party.session.socket_bytes())


def run_question(
    recipe: config.Recipe, locate: Locate, image: Path, question: str, checkpoint: Path | None, max_new_tokens: int
) -> str:
    """`bitseam ask`: print the answer as it comes; returns it."""
    if max_new_tokens > (most := recipe.text.most_new_tokens):
        raise ConfigError(f"--max-new-tokens {max_new_tokens}: the server gives {most} at the most (text.max_tokens)")
    row = Row(image, question, "")
    open_crops(image, recipe.client.crops)  # a bad file is told before anything else is loaded
    side = ready_client(recipe, locate, "ask", checkpoint or newest(recipe.folder, "client"))
    with open_party(recipe, side, training=False) as party:
        features = LiveFeatures(party.model.vision).of([row.image])
        text = party.prompter.batch([question])
        answer = AnswerStream(party.prompter)
        for ids in party.session.ask(features, text, max_new_tokens):
            _write(answer.feed(ids))
        _write(answer.close() + "\n")
        codes = party.session.ledger.coded_bytes("Ask", "image")
        Terminal(stderr=True).print(
            f"the image went up as {codes:,} bytes of codes; its file has {os.path.getsize(image):,}"
        )
    return answer.text


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


def _told(found: Survey) -> Survey:
    """The same, after a word on what is left out."""
    if found.bad:
        log.warning("%s rows are left out:", f"{len(found.bad):,}")
        for line in listed(found.bad).split("\n"):
            log.warning("%s", line)
    return found


@contextmanager
def _features(party: Party, recipe: config.Recipe, found: Survey) -> Iterator[Features]:
    if stores_features(recipe):
        yield StoredFeatures(party.model.vision, found.contents, cache_folder() / "features")
    else:
        with closing(LiveFeatures(party.model.vision, recipe.data.workers)) as live:
            yield live


def _evaluate(party: Party, features: Features, rows: list[Row], recipe: config.Recipe) -> dict[str, object]:
    room = answer_room(party.prompter, rows, recipe.text)
    result = evaluate(party.session, party.prompter, rows, features.of, longest=room)
    table = Table("task", "correct", "of", "accuracy", "95 % interval", title="Accuracy")
    for task, score in result.scores.items():
        low, high = wilson(score.correct, score.total)
        share = score.correct / score.total
        table.add_row(plain(task), str(score.correct), str(score.total), f"{share:.1%}", f"{low:.1%} to {high:.1%}")
    stdout.print(table)
    if cut := sum(len(party.prompter.answer(row.answer)) > room for row in rows):
        stdout.print(
            f"{cut} right answers have more tokens than text.max_answer_tokens, {room}: no answer can be theirs"
        )
    return {"tasks": {task: asdict(score) for task, score in result.scores.items()}, "answers": result.answers}
