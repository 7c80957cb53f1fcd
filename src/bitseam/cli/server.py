"""`bitseam serve`: a `Server` until a signal comes."""

from __future__ import annotations

import signal
from pathlib import Path

from bitseam import config
from bitseam.api.server import Server
from bitseam.runs.stopping import TERMINATED, told_by


def run_server(recipe: config.Recipe, checkpoint: Path | None = None) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; a step under way is then ended and checkpointed on both sides."""
    server = Server(recipe, checkpoint, progress=True).load()  # which a signal may break off
    with told_by((*TERMINATED, signal.SIGINT)) as told, server:
        told.wait(None)
        server.stop()  # while a second signal is noted, too
