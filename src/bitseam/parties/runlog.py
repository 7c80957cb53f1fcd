"""What a half tells of its training: a progress bar, a line of JSON a step, and TensorBoard curves."""

from __future__ import annotations

import json
import resource
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from bitseam.parties.console import Terminal


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
        self._last = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Terminal(stderr=True),
        )
        self._task = self._bar.add_task(side, total=steps, loss=float("nan"))

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def step(self, step: int, row: dict[str, Any]) -> None:
        """One optimiser step; numbers in `row` become curves."""
        if self._file is None or step <= self._last:
            self._begin(step)
        assert self._file is not None
        self._last = step
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            if isinstance(value, int | float):
                self._curves.add_scalar(name, value, step)
        self._bar.update(self._task, completed=step, loss=row["loss"])

    def _begin(self, step: int) -> None:
        """Open the files for what follows, with what a run had logged before `step` where it goes on."""
        self._open.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "log.jsonl"
        before = _rows_before(path, step)
        self._file = self._open.enter_context(path.open("w", encoding="utf-8", buffering=1))
        self._file.writelines(before)
        curves = str(self._folder / "tensorboard")
        self._curves = self._open.enter_context(SummaryWriter(curves, purge_step=step if before else None))
        self._open.enter_context(self._bar)


def _rows_before(path: Path, step: int) -> list[str]:
    """What a run that goes on from an earlier step had logged until then; a killed one may have left half a line."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return [line for line in whole if json.loads(line)["step"] < step]
