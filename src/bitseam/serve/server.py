"""The server process: holds the language half, listens, trains and answers until it is told to stop."""

from __future__ import annotations

import json
import logging
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitseam import config
from bitseam.errors import BitseamError
from bitseam.parties.checkpoint import Locate
from bitseam.parties.party import ServerParty, StepReport
from bitseam.parties.runlog import RunLog, peak_memory
from bitseam.parties.server import ServerSession
from bitseam.transport import Channel, Listener, Tls

log = logging.getLogger(__name__)

_SESSIONS = 32
_GRACE = 30.0  # seconds that a client which trains is given to end its step and have both halves written


def serve(recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a step under way is then ended and checkpointed on both sides.

    Goes on where the recipe's folder ends, or begins anew. checkpoint: a folder to answer from instead. A client that
    goes away or misbehaves ends its own session alone.
    """
    party = ServerParty(recipe, locate, checkpoint)
    tls = Tls.from_folder(recipe.network.certificates, "server") if recipe.network.certificates else None
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    with RunLog(recipe.folder, "server", recipe.train.steps) as bar:
        party.on_step = lambda report: bar.step(report.step, _row(report))
        handler = _Handler(party)
        listener = Listener(recipe.network.address, handler, tls, _SESSIONS)
        listener.start()
        log.info("listening on %s; the language half is at step %d", recipe.network.address, party.step)
        try:
            told.wait()
            log.info("stopping")
            party.stopping.set()
            handler.wait_for_trainers(_GRACE)
        finally:
            listener.stop(grace=2)
    parameters = sum(p.numel() for p in party.model.parameters())
    summary = {"step": party.step, "parameters": parameters, "peak_memory_bytes": peak_memory()}
    summary_path = recipe.folder / "server" / "summary.json"
    summary_path.parent.mkdir(parents=True, exist_ok=True)
    summary_path.write_text(json.dumps(summary))


class _Handler:
    """Runs each session, and knows which there are."""

    def __init__(self, party: ServerParty) -> None:
        self._party = party
        self._sessions: set[ServerSession] = set()
        self._changed = threading.Condition()

    def __call__(self, channel: Channel) -> None:
        session = ServerSession(self._party, channel)
        with self._changed:
            self._sessions.add(session)
        try:
            session.run()
        except Exception as error:
            log.error("%s: %s", channel.peer, error, exc_info=not isinstance(error, BitseamError))
        else:
            log.info("%s: session over", channel.peer)
        finally:
            with self._changed:
                self._sessions.remove(session)
                self._changed.notify_all()

    def wait_for_trainers(self, seconds: float) -> None:
        """Until no session trains any more, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: not any(session.training for session in self._sessions), seconds)


def _row(report: StepReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if key != "step"}
