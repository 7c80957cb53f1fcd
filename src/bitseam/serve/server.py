"""The server process: holds the language half, listens, trains and answers until it is told to stop."""

from __future__ import annotations

import json
import logging
import signal
import threading
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitseam import config
from bitseam.parties.checkpoint import Locate
from bitseam.parties.party import ServerParty, StepReport
from bitseam.parties.quota import Quotas
from bitseam.parties.runlog import RunLog, peak_memory
from bitseam.serve.events import event_log
from bitseam.serve.metrics import Metrics, publish
from bitseam.serve.sessions import Sessions
from bitseam.transport import Admission, Listener, Tls

log = logging.getLogger(__name__)

_SESSIONS = 32
_GRACE = 30.0  # seconds that a client which trains is given to end its step and have both halves written


def serve(recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a step under way is then ended and checkpointed on both sides.

    Goes on where the recipe's folder ends, or begins anew. checkpoint: a folder to answer from instead. A client that
    goes away or misbehaves ends its own session alone.
    """
    network = recipe.network
    tls = Tls.from_folder(network.certificates, "server") if network.certificates else None
    admission = None
    if tls is not None:  # a list with a fault in it is told before anything else is loaded
        allow_list = Path(network.allow_list) if network.allow_list else None
        admission = Admission(tls.authority, tls.revocations, allow_list)
    party = ServerParty(recipe, locate, checkpoint)
    if admission is not None:
        party.quotas = Quotas(admission.quota, recipe.folder / "server" / "quota.json")
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    sessions = Sessions(party)
    metrics = Metrics(party, sessions)
    with ExitStack() as stack:
        bar = stack.enter_context(RunLog(recipe.folder, "server", recipe.train.steps * recipe.train.clients))
        stack.enter_context(event_log(recipe.folder / "server" / "events.jsonl"))

        def on_step(report: StepReport) -> None:
            bar.step(report.step, _row(report))
            metrics.on_step(report)

        party.on_step = on_step
        exposed = network.plaintext_that_anyone_can_read_and_change
        listener = Listener(network.address, sessions, tls, _SESSIONS, network.keepalive, admission, exposed)
        if network.metrics:
            stack.callback(publish(metrics, network.metrics, recipe.folder / "server" / "metrics.json").shutdown)
        listener.start()
        log.info("listening on %s; the language half is at step %d", network.address, party.step)
        try:
            told.wait()
            log.info("stopping")
            listener.leave()
            party.stopping.set()
            sessions.wait_for_trainers(_GRACE)
        finally:
            listener.stop(grace=2)
    parameters = sum(p.numel() for p in party.model.parameters())
    summary = {"step": party.step, "parameters": parameters, "peak_memory_bytes": peak_memory()}
    summary_path = recipe.folder / "server" / "summary.json"
    summary_path.parent.mkdir(parents=True, exist_ok=True)
    summary_path.write_text(json.dumps(summary))


def _row(report: StepReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if key != "step"}
