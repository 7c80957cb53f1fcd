"""What a half tells of its training: a progress bar, a line of JSON a step, and TensorBoard curves."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from bitseam.console import Terminal
from bitseam.runs.byproducts import Byproduct

log = logging.getLogger(__name__)


def peak_memory() -> int:
    """The most memory that this process has held resident, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class RunLog:
    """Writes OUT/SIDE/log.jsonl and OUT/SIDE/tensorboard, and shows a bar. Use as a context manager.

    All three are by-products: see `bitseam.runs.byproducts`. Nothing is opened before the first step: a server that
    only answers leaves the log of its training alone.
    """

    def __init__(self, out: Path, side: Literal["client", "server"], steps: int) -> None:
        self._lines = Byproduct(out / side / "log.jsonl")
        self._curves = Curves(out / side / "tensorboard")
        self._last: int | None = None
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
        self._bar.stop()

    def step(self, step: int, row: dict[str, Any]) -> None:
        """One optimiser step; numbers in `row` become curves."""
        if self._last is None or step <= self._last:
            self._begin(step)
        self._last = step
        self._lines.append_line(json.dumps({"step": step, **row}))
        self._curves.add(step, {name: value for name, value in row.items() if isinstance(value, int | float)})
        self._bar.update(self._task, completed=step, loss=row["loss"])

    def _begin(self, step: int) -> None:
        """Go on after what a run had logged before `step`; what it logged from there on is taken again."""
        with self._lines.attempt():
            lines, before = _rows_before(self._lines.path, step)
            if lines != before:
                self._lines.replace("".join(before))
            if before:
                self._curves.go_back(step)
        self._bar.start()


class Curves:
    """One file of events below a folder, as TensorBoard reads them.

    TensorBoard's own writer has a thread that dies for good of the first error; here each step's record is written
    whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = Byproduct(folder / name)

    def add(self, step: int, values: dict[str, float]) -> None:
        """One point of each curve."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(step=step, summary=summary))

    def go_back(self, step: int) -> None:
        """What was told of `step` and later does not count any more."""
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event: Event) -> None:
        event.wall_time = now = time.time()
        self._file.append(_record(event), head=_record(Event(wall_time=now, file_version="brain.Event:2")))


def _record(event: Event) -> bytes:
    record = io.BytesIO()
    RecordWriter(record).write(event.SerializeToString())
    return record.getvalue()


def _rows_before(path: Path, step: int) -> tuple[list[str], list[str]]:
    """All lines of a log, and those of the run that goes on from an earlier step; lines that are no rows are left out.

    A killed process may have left half a line, and two that shared a folder even stranger ones.
    """
    if not path.exists():
        return [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and (number := _step_of(line)) is not None and number < step]
    if strange := sum(_step_of(line) is None for line in lines):
        log.warning("%s: %d lines that are no rows of a log are left out", path, strange)
    return lines, kept


def _step_of(line: str) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None
