"""A tiny training run in two processes that can be killed, started again, and compared with another.

Processes are forked from one that has imported what both sides import (multiprocessing's fork server), so that a start
takes the time of what Bitseam does and not the five seconds of importing torch. What runs in them is the command line.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Literal

Side = Literal["client", "server"]
SIDES: tuple[Side, ...] = ("client", "server")
_COMMANDS = {"client": "train", "server": "serve"}
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["bitseam.cli.main", "bitseam.cli.client", "bitseam.serve.server", "peft", "transformers.models.llama", "pair"]
)


class Pair:
    """Both sides' processes of the recipe in FOLDER/tiny.toml. A context manager: leaving it kills what still runs.

    options: of the command line, for both. Output is gathered in FOLDER/SIDE.out over all starts.
    """

    def __init__(self, folder: Path, *options: str, own: Mapping[Side, tuple[str, ...]] | None = None) -> None:
        self.folder, self._options, self._own = folder, options, own or {}
        self._processes: dict[Side, ForkServerProcess] = {}

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self._processes:
            self.kill(side)

    def start(self, side: Side) -> None:
        words = [_COMMANDS[side], str(self.folder / "tiny.toml"), *self._options, *self._own.get(side, ())]
        process = _FORKS.Process(target=_run, args=(words, self.folder, side), daemon=True)
        process.start()
        self._processes[side] = process

    def kill(self, side: Side) -> None:
        """SIGKILL; returns when the process is no more."""
        self._processes[side].kill()
        self._processes[side].join()

    def terminate(self, side: Side) -> None:
        """SIGTERM, which a side may answer in its own time."""
        os.kill(self._processes[side].pid or 0, signal.SIGTERM)

    def status(self, side: Side) -> int | None:
        """Exit status; None while it runs."""
        return self._processes[side].exitcode

    def join(self, side: Side, timeout: float) -> int | None:
        self._processes[side].join(timeout)
        return self.status(side)

    def output(self, side: Side) -> str:
        """All that it has said, as one line, so that a wrapped console hides nothing."""
        path = self.folder / f"{side}.out"
        return " ".join(path.read_text(errors="replace").split()) if path.exists() else ""

    def step(self) -> int:
        """The last step in the client's log; 0 before the first."""
        try:
            lines = (self.folder / "run" / "client" / "log.jsonl").read_bytes().splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, IndexError, ValueError, KeyError):  # not there yet, or half written
            return 0

    def weights(self) -> dict[str, bytes]:
        """Every file of tensors in the newest checkpoint of each side, by its place below the run's folder."""
        run = self.folder / "run"
        newest = [max((run / side).glob("step-*"), default=run / "none") for side in SIDES]
        files = [path for folder in newest for path in sorted(folder.rglob("*.safetensors"))]
        return {str(path.relative_to(run)): path.read_bytes() for path in files}


def _run(words: list[str], folder: Path, side: Side) -> None:
    """In a process of its own: what `bitseam WORDS` does."""
    out = os.open(folder / f"{side}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ |= {"BITSEAM_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    from bitseam.cli.main import main

    sys.argv = ["bitseam", *words]
    main()


def until(condition, seconds: float, pause: float = 0.01) -> bool:
    """Whether the condition comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
