"""The server process: holds the language half, listens, trains and answers until it is told to stop."""

from __future__ import annotations

import json
import logging
import signal
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitseam import config
from bitseam.checks.server import ready_server
from bitseam.runs.byproducts import Byproduct
from bitseam.runs.checkpoint import Locate
from bitseam.runs.claim import claimed
from bitseam.runs.runlog import RunLog, peak_memory
from bitseam.runs.stopping import TERMINATED, told_by
from bitseam.serve.events import event_log
from bitseam.serve.metrics import Metrics, publish
from bitseam.serve.sessions import Sessions
from bitseam.sessions.party import StepReport
from bitseam.sessions.quota import Quotas
from bitseam.transport import Listener

log = logging.getLogger(__name__)

_SESSIONS = 32
_NOTED = 5.0  # seconds between looks at whether the note of where the metrics are is there
_GRACE = 30.0  # seconds that a client which trains is given to end its step and have both halves written


def serve(recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; a step under way is then ended and checkpointed on both sides.

    Goes on where the recipe's folder ends, or begins anew. checkpoint: a folder to answer from instead. A client that
    goes away or misbehaves ends its own session alone. Raises ConfigError where another server has the folder, or where
    it cannot be written.
    """
    with claimed(recipe.folder, "server", needed=checkpoint is None):
        _serve(recipe, locate, checkpoint)


def _serve(recipe: config.Recipe, locate: Locate, checkpoint: Path | None) -> None:
    network, folder = recipe.network, recipe.folder / "server"
    side = ready_server(recipe, locate, checkpoint)
    party, tls, admission = side.party, side.tls, side.admission
    if admission is not None:
        party.quotas = Quotas(admission.quota, folder / "quota.json")
    sessions = Sessions(party)
    metrics = Metrics(party, sessions)
    with ExitStack() as stack:
        told = stack.enter_context(told_by((*TERMINATED, signal.SIGINT)))
        bar = stack.enter_context(RunLog(recipe.folder, "server", recipe.train.steps * recipe.train.clients))
        stack.enter_context(event_log(folder / "events.jsonl"))

        def on_step(report: StepReport) -> None:
            bar.step(report.step, _row(report))
            metrics.on_step(report)

        party.on_step = on_step
        exposed = network.plaintext_that_anyone_can_read_and_change
        listener = Listener(network.address, sessions, tls, _SESSIONS, network.keepalive, admission, exposed)
        note, text = Byproduct(folder / "metrics.json"), ""
        if network.metrics:
            http, url = publish(metrics, network.metrics)
            stack.callback(http.shutdown)
            text = json.dumps({"metrics": url})
        listener.start()
        log.info("listening on %s; the language half is at step %d", network.address, party.step)
        try:
            while True:
                if text and not _holds(note.path, text):
                    note.replace(text)
                if told.wait(_NOTED):
                    break
            log.info("stopping")
            listener.leave()
            party.stopping.set()
            sessions.wait_for_trainers(_GRACE)
        finally:
            listener.stop(grace=2)
    parameters = sum(p.numel() for p in party.model.parameters())
    summary = {"step": party.step, "parameters": parameters, "peak_memory_bytes": peak_memory()}
    Byproduct(folder / "summary.json").replace(json.dumps(summary))


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _row(report: StepReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if key != "step"}
