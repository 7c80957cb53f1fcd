"""The language half, served from this process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future
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

_LOOK = 0.5  # seconds between looks at whether the main thread has ended


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
        self._held = ExitStack()  # of `load`
        self._side: ServerSide | None = None
        self._address: str | None = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._failure: BaseException | None = None

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
        """Listen; returns when clients can come. Raises what `load` does, and UsageError where it listens already."""
        with self._guard("start()"):
            if self._address is not None:
                raise UsageError(f"start(): this server listens already, at {self._address}")
            self.load()
            began: Future[str] = Future()
            self._thread = threading.Thread(target=self._serve, args=(self._side, began), name="bitseam-server")
            self._thread.start()
            self._address = began.result()
        return self

    def wait(self, seconds: float | None = None) -> bool:
        """Until another thread has stopped it, some seconds at most; returns whether it has ended.

        Raises ClosedError before `start`, and what has ended it where that was an error.
        """
        assert self.address
        assert self._thread is not None
        self._thread.join(seconds)
        self._raise_failure()
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End: a step under way is finished, both halves are written, and sessions are closed. A second call is none.

        Raises what has gone wrong in its thread.
        """
        if self._guard.close():
            self._ending.set()
            if self._thread is not None:
                self._thread.join()
            self._side = None
            self._held.close()
            self._raise_failure()

    def __enter__(self) -> Server:
        return self if self._address is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serve(self, side: ServerSide, began: Future[str]) -> None:
        """Of the server's thread, which ends with the main one where nobody has stopped it."""
        try:
            with listening(self.recipe, side, self._progress) as address:
                began.set_result(address)
                while not self._ending.wait(_LOOK) and threading.main_thread().is_alive():
                    pass
        except BaseException as error:
            if began.done():
                self._failure = error
            else:
                began.set_exception(error)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
