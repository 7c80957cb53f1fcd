"""What each client has used of the server, and the end of it."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from bitseam.errors import ConfigError, QuotaError
from bitseam.runs.byproducts import Byproduct
from bitseam.transport import Quota

_SAVE_EVERY = 1.0  # seconds between writes, so that they cost nothing; a killed server forgets no more than that


@dataclass(config=ConfigDict(extra="forbid"))
class Used:
    """By one client, ever. bytes: of frames, both ways; steps: done again after a restart, they count again."""

    bytes: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 0


class Quotas:
    """Counts bytes, steps and sessions by the client's name. Threads may share it.

    limits: name -> what that client may use, as it stands now; everything by default. path: where bytes and steps are
    kept over restarts, a file of its own beside the checkpoints: who goes back to an older step has used what was used
    all the same.
    Raises ConfigError where that file is not sound.
    """

    def __init__(self, limits: Callable[[str], Quota] = lambda name: Quota(), path: Path | None = None) -> None:
        self._limits = limits
        self._file = None if path is None else Byproduct(path, "what clients have used is not kept")
        self._used: dict[str, Used] = {}
        self._sessions: dict[str, Counter[object]] = {}
        self._lock = threading.Lock()
        self._saved = time.monotonic()
        if path is not None and path.exists():
            try:
                self._used = TypeAdapter(dict[str, Used]).validate_json(path.read_bytes())
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{path}: what clients have used cannot be read; remove it to begin at 0: {error}"
                ) from error

    @contextmanager
    def session(self, name: str, key: object) -> Iterator[None]:
        """A session of this client while the context lasts. Raises QuotaError where it may have no more.

        Those of an equal key are one session: the link that broke, which may not be missed yet, and the one after it.
        """
        with self._lock:
            present = self._sessions.setdefault(name, Counter())
            self._require(name, "sessions at once", len({*present, key}), self._limits(name).sessions)
            present[key] += 1
        try:
            yield
        finally:
            with self._lock:
                present[key] -= 1
                if not present[key]:
                    del present[key]
                self._save()

    def require(self, name: str, steps: int = 0) -> None:
        """Raise QuotaError where the client is over its bytes, or `steps` more would be over its steps."""
        with self._lock:
            limit, used = self._limits(name), self._used.get(name, Used())
            self._require(name, "bytes", used.bytes, limit.bytes)
            if steps:
                self._require(name, "steps", used.steps + steps, limit.steps)

    def count(self, name: str, bytes: int = 0, steps: int = 0) -> None:
        """The client has used so much more."""
        with self._lock:
            used = self._used.setdefault(name, Used())
            used.bytes += bytes
            used.steps += steps
            if time.monotonic() - self._saved >= _SAVE_EVERY:
                self._save()

    def used(self, name: str) -> Used:
        """What the client has used, ever."""
        with self._lock:
            return Used(**asdict(self._used.get(name, Used())))

    @staticmethod
    def _require(name: str, what: str, needed: int, limit: int | None) -> None:
        if limit is not None and needed > limit:
            raise QuotaError(f"client {name!r} may use {limit:,} {what}, and this would be {needed:,}")

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._file is not None:  # where that fails, it is no reason to end anybody's session
            self._file.replace(json.dumps({name: asdict(used) for name, used in self._used.items()}, indent=1))
