"""What a half tells of its training: a progress bar, a line of JSON a step, and TensorBoard curves."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


def peak_memory() -> int:
    """The most memory that this process has held resident, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class RunLog:
    """Writes OUT/SIDE/log.jsonl and OUT/SIDE/tensorboard, and shows a bar. Use as a context manager."""

    def __init__(self, out: Path, side: Literal["client", "server"], steps: int) -> None:
        folder = out / side
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.jsonl").open("w", encoding="utf-8", buffering=1)
        self._curves = SummaryWriter(str(folder / "tensorboard"))
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
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        self._file.close()
        self._curves.close()

    def step(self, step: int, row: dict[str, Any]) -> None:
        """One optimiser step; numbers in `row` become curves."""
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            if isinstance(value, int | float):
                self._curves.add_scalar(name, value, step)
        self._bar.update(self._task, completed=step, loss=row["loss"])
