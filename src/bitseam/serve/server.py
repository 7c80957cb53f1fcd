"""The server: holds the language half, listens, trains and answers until it is told to stop."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitseam import config
from bitseam.checks.server import ServerSide, ready_server
from bitseam.runs.byproducts import Byproduct
from bitseam.runs.checkpoint import Locate
from bitseam.runs.claim import claimed
from bitseam.runs.runlog import RunLog, peak_memory
from bitseam.serve.events import event_log
from bitseam.serve.metrics import Metrics, publish
from bitseam.serve.sessions import Sessions
from bitseam.sessions.party import StepReport
from bitseam.sessions.quota import Quotas
from bitseam.transport import Listener, join_address, split_address

log = logging.getLogger(__name__)

_SESSIONS = 32
_NOTED = 5.0  # seconds between looks at whether the note of where the metrics are is there
_GRACE = 30.0  # seconds that a client which trains is given to end its step and have both halves written


@contextmanager
def loaded(recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> Iterator[ServerSide]:
    """The server's side, checked and loaded; its folder is ours while the context lasts.

    Goes on where the recipe's folder ends, or begins anew. checkpoint: a folder to answer from instead. Raises all that
    is wrong, and ClaimedError where another server has the folder, ConfigError where it cannot be written.
    """
    with claimed(recipe.folder, "server", needed=checkpoint is None):
        side = ready_server(recipe, locate, checkpoint)
        if side.admission is not None:
            side.party.quotas = Quotas(side.admission.quota, recipe.folder / "server" / "quota.json")
        yield side


@contextmanager
def listening(recipe: config.Recipe, side: ServerSide, progress: bool) -> Iterator[str]:
    """Serve, in threads, while the context lasts; gives the address, with the port that a 0 in the recipe has found.

    A client that goes away or misbehaves ends its own session alone. In the end a step under way is finished, and
    checkpointed on both sides. progress: with a bar on standard error.
    """
    network, folder, party = recipe.network, recipe.folder / "server", side.party
    sessions = Sessions(party)
    metrics = Metrics(party, sessions)
    with ExitStack() as stack:
        bar = stack.enter_context(RunLog(recipe.folder, "server", recipe.train.steps * recipe.train.clients, progress))
        stack.enter_context(event_log(folder / "events.jsonl"))

        def on_step(report: StepReport) -> None:
            bar.step(report.step, _row(report))
            metrics.on_step(report)

        party.on_step = on_step
        exposed = network.plaintext_that_anyone_can_read_and_change
        listener = Listener(network.address, sessions, side.tls, _SESSIONS, network.keepalive, side.admission, exposed)
        if network.metrics:
            http, url = publish(metrics, network.metrics)
            stack.callback(http.server_close)
            stack.callback(http.shutdown)
            stack.enter_context(_noted(folder / "metrics.json", json.dumps({"metrics": url})))
        listener.start()
        address = join_address(split_address(network.address)[0], listener.port)
        log.info("listening on %s; the language half is at step %d", address, party.step)
        try:
            yield address
            log.info("stopping")
            listener.leave()
            party.stopping.set()
            sessions.wait_for_trainers(_GRACE)
        finally:
            listener.stop(grace=2)
    parameters = sum(p.numel() for p in party.model.parameters())
    summary = {"step": party.step, "parameters": parameters, "peak_memory_bytes": peak_memory()}
    Byproduct(folder / "summary.json").replace(json.dumps(summary))


@contextmanager
def _noted(path: Path, text: str) -> Iterator[None]:
    """A file holds `text` while the context lasts, whoever removes it."""
    note, over = Byproduct(path), threading.Event()

    def keep() -> None:
        while True:
            if not _holds(path, text):
                note.replace(text)
            if over.wait(_NOTED):
                return

    keeper = threading.Thread(target=keep, name="bitseam-note", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _row(report: StepReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if key != "step"}
