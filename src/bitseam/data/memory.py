"""What was found about inputs by slow checks, remembered in the cache by a digest of the inputs."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


class Memory:
    """Keys to values, both bytes, in one SQLite file that several processes may use at once.

    It only saves time: where the file cannot be read or written, that is said once and nothing is remembered.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open: sqlite3.Connection | None = None
        self._empty = not path.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open = sqlite3.connect(path, timeout=60)
            self._open.execute("CREATE TABLE IF NOT EXISTS found (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        except (OSError, sqlite3.Error) as error:
            self._forget(error)

    def recall(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are known."""
        found: dict[bytes, bytes] = {}
        if self._open is not None:
            try:
                for key in keys:
                    if (
                        row := self._open.execute("SELECT value FROM found WHERE key = ?", (key,)).fetchone()
                    ) is not None:
                        found[key] = row[0]
            except sqlite3.Error as error:
                self._forget(error)
        return found

    def keep(self, found: Mapping[bytes, bytes]) -> None:
        """Remember, for the next process too."""
        if self._open is not None:
            try:
                with self._open:
                    self._open.executemany("INSERT OR REPLACE INTO found VALUES (?, ?)", found.items())
                self._empty = False
            except sqlite3.Error as error:
                self._forget(error)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _forget(self, error: Exception) -> None:
        log.warning("%s: what is checked now will be checked again at the next start: %s", self._path, error)
        self.close()
        if self._empty:
            with suppress(OSError):
                self._path.unlink()
