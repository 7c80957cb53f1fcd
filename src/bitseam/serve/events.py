"""The server's log as lines of JSON, each with the session, client and step that it is about."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pythonjsonlogger.json import JsonFormatter

from bitseam.runs.byproducts import Byproduct
from bitseam.sessions.server import current_session


class _AboutSession(logging.Filter):
    """Adds session, client and step to records that a session's thread, or the model's on its behalf, has made."""

    def filter(self, record: logging.LogRecord) -> bool:
        session = current_session.get()
        if session is not None:
            record.session, record.client, record.step = session.id, session.client, session.step
        return True


class _Lines(logging.Handler):
    """Appends each record as a line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = Byproduct(path)

    def emit(self, record: logging.LogRecord) -> None:
        self._file.append_line(self.format(record))


@contextmanager
def event_log(path: Path) -> Iterator[None]:
    """Append what Bitseam logs to a file while the context lasts."""
    handler = _Lines(path)
    names = {"asctime": "time", "levelname": "level", "name": "logger"}
    handler.setFormatter(JsonFormatter("{asctime}{levelname}{name}{message}", style="{", rename_fields=names))
    handler.addFilter(_AboutSession())
    ours = logging.getLogger("bitseam")
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()
