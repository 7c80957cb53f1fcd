"""What a half tells of its training: a progress bar, a line of JSON a step, and TensorBoard curves."""

from __future__ import annotations

import json
import resource
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


def peak_memory() -> int:
    """The most memory that this process has held resident, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class RunLog:
    """Writes OUT/SIDE/log.jsonl and OUT/SIDE/tensorboard, and shows a bar. Use as a context manager.

    Nothing is opened before the first step: a server that only answers leaves the log of its training alone.
    """

    def __init__(self, out: Path, side: Literal["client", "server"], steps: int) -> None:
        self._folder = out / side
        self._open = ExitStack()
        self._file: TextIO | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(side, total=steps, loss=float("nan"))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def step(self, step: int, row: dict[str, Any]) -> None:
        """One optimiser step; numbers in `row` become curves."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / "log.jsonl"
            self._file = self._open.enter_context(path.open("w", encoding="utf-8", buffering=1))
            self._curves = self._open.enter_context(SummaryWriter(str(self._folder / "tensorboard")))
            self._open.enter_context(self._bar)
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            if isinstance(value, int | float):
                self._curves.add_scalar(name, value, step)
        self._bar.update(self._task, completed=step, loss=row["loss"])
