"""The language half, served from this process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitseam import config
from bitseam.api.guard import Guard
from bitseam.api.recipes import as_recipe, locate
from bitseam.checks.server import ServerSide
from bitseam.errors import ClosedError, UsageError
from bitseam.serve.server import listening, loaded


class Server:
    """Holds the language half, trains it with clients and answers questions, in threads of this process.

    >>> with Server(recipe) as server, Client.open(server.client_recipe(), purpose="train") as client:
    ...     client.train()

    It goes on where the recipe's folder ends, or begins anew. Each is started once. Close the clients of this process
    before it: `stop` waits up to 30 seconds for those that train to end their step. Calls raise ClosedError after
    `stop`, and BusyError where another thread is in one.
    """

    def __init__(
        self,
        recipe: config.Recipe | str | Path | Mapping[str, Any],
        checkpoint: str | Path | None = None,
        *,
        progress: bool = False,
    ) -> None:
        """recipe: what `load_recipe` gives or takes. checkpoint: a folder of the server's half to answer from, instead
        of the recipe's run; nobody can train it then. progress: show a bar on standard error."""
        self.recipe = as_recipe(recipe)
        self._checkpoint, self._progress = Path(checkpoint) if checkpoint is not None else None, progress
        self._guard = Guard("this server")
        self._held = ExitStack()  # what there is to end, last first
        self._side: ServerSide | None = None
        self._address: str | None = None
        self._stopped = threading.Event()

    @property
    def address(self) -> str:
        """ "host:port" of where it listens. Raises ClosedError before `start`."""
        if self._address is None:
            raise ClosedError("address: this server was not started; call start(), or use it in a `with` statement")
        return self._address

    @property
    def step(self) -> int:
        """The step that the language half is at. Raises ClosedError before `load` and after `stop`."""
        if self._side is None:
            raise ClosedError("step: this server has no language half: it is not loaded yet, or has been stopped")
        return self._side.party.step

    def client_recipe(self) -> config.Recipe:
        """The recipe for a client on this machine, with the address filled in. Raises ClosedError before `start`."""
        return replace(self.recipe, network=replace(self.recipe.network, address=self.address))

    def load(self) -> Server:
        """Check everything and load the language half, without listening yet; `start` does so where this was not done.

        Raises what is wrong: CheckError for several things, AddressInUseError, ClaimedError, ModelError, ...
        """
        with self._guard("load()"):
            if self._side is None:
                with ExitStack() as stack:
                    self._side = stack.enter_context(loaded(self.recipe, locate, self._checkpoint))
                    self._held = stack.pop_all()
        return self

    def start(self) -> Server:
        """Listen; returns when clients can come. Raises what `load` does, and UsageError where it runs already."""
        with self._guard("start()"):
            if self._address is not None:
                raise UsageError(f"start(): this server listens already, at {self._address}")
            self.load()
            assert self._side is not None
            self._address = self._held.enter_context(listening(self.recipe, self._side, self._progress))
        return self

    def wait(self, seconds: float | None = None) -> bool:
        """Until another thread has stopped it, some seconds at most; returns whether it was stopped.

        Raises ClosedError before `start`.
        """
        assert self.address
        return self._stopped.wait(seconds)

    def stop(self) -> None:
        """End: a step under way is finished, both halves are written, and sessions are closed. A second call is none.

        Raises what went wrong while it ended.
        """
        if self._guard.close():
            self._side = None
            try:
                self._held.close()
            finally:
                self._stopped.set()

    def __enter__(self) -> Server:
        return self if self._address is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
