"""The demo's report: one self-contained HTML page, and its figures as a table for a terminal or a README.

Of two runs of one recipe, `coded` and `fp16`, the report states

    ratio               (fp16 up + down) / (coded up + down), lengths of serialized frames
    inside              the coded accuracy lies inside the 95 % Wilson interval of fp16's
    above chance        the lower end of an accuracy's own interval is above chance
    held                inside or above, and above chance: only of such tasks does the headline say "as well"

MB is 10^6 bytes. The loss is in nats an answer token.
"""

from __future__ import annotations

import base64
import mimetypes
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from bitseam.console import plain
from bitseam.errors import DataError, printable
from bitseam.evals.answers import normal, wilson

Report = Mapping[str, Any]
VARIANTS = ("coded", "fp16")
_HEADER = ("", *VARIANTS, "coded against fp16")
_ROUNDING = 1e-9  # the interval of 0 or of all right ends at 0 or 1 only up to float error


@contextmanager
def _complete() -> Iterator[None]:
    """Tell a field that the report lacks by name."""
    try:
        yield
    except (KeyError, UndefinedError) as fault:
        raise DataError(f"report.json lacks a field: {fault}; write it anew with `bitseam demo`") from fault


@dataclass(frozen=True)
class Accuracy:
    """Right answers of one run on one task."""

    correct: int
    total: int
    chance: float

    @property
    def share(self) -> float:
        return self.correct / max(self.total, 1)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.total)

    @property
    def above_chance(self) -> bool:
        return self.interval[0] > self.chance


@dataclass(frozen=True)
class Task:
    """Both runs on one task."""

    name: str
    coded: Accuracy
    fp16: Accuracy

    @property
    def place(self) -> str:
        """Where the coded accuracy lies by fp16's interval: `inside`, `below` or `above` it."""
        low, high = self.fp16.interval
        if self.coded.share < low - _ROUNDING:
            return "below"
        return "above" if self.coded.share > high + _ROUNDING else "inside"

    @property
    def held(self) -> bool:
        return self.place != "below" and self.coded.above_chance

    @property
    def verdict(self) -> str:
        """Place and, where it is so, that the coded run or both are not above chance."""
        chance = ""
        if not self.coded.above_chance:
            chance = ", and not above chance" if self.fp16.above_chance else ", and neither is above chance"
        return f"{self.place} fp16's interval{chance}"


def tasks_of(report: Report) -> list[Task]:
    """The report's tasks, in its order."""
    return [
        Task(name, *(Accuracy(task[v]["correct"], task[v]["total"], task["chance"]) for v in VARIANTS))
        for name, task in report["tasks"].items()
    ]


@_complete()
def headline(report: Report) -> str:
    """The result in one sentence; a task where the coded run did not hold is named in it, with its figures."""
    tasks = tasks_of(report)
    frames = {v: _frames(report, v) for v in VARIANTS}
    sentence = (
        f"The coded run sent {_compared(frames['coded'], frames['fp16'], 'fewer', 'more', 'as many', 1)} bytes, "
        f"up and down together, and answered as well as fp16 or better, by its 95 % interval, "
        f"on {sum(task.held for task in tasks)} of {len(tasks)} tasks"
    )
    others = [
        f"on {task.name} it was {task.verdict} ({percent(task.coded.share)} against {percent(task.fp16.share)})"
        for task in tasks
        if not task.held
    ]
    return "; ".join([sentence, *others]) + "."


@_complete()
def summary_table(report: Report) -> Table:
    """Traffic, accuracy, time and memory of both runs, for a terminal. Raises DataError where a field is missing."""
    table = Table(title="Bitseam demo")
    for number, name in enumerate(_HEADER):
        table.add_column(name, justify="right" if name in VARIANTS else "left", overflow="fold", no_wrap=number == 0)
    for row in _rows(report):
        table.add_row(*map(plain, row))
    return table


@_complete()
def summary_markdown(report: Report) -> str:
    """The table of `summary_table`, as Markdown that ends in a newline. Raises DataError where a field is missing."""
    rows = [_HEADER, ("---", "---:", "---:", "---"), *_rows(report)]
    return "".join("| " + " | ".join(map(_cell, row)) + " |\n" for row in rows)


@_complete()
def write_html(report: Report, folder: Path) -> Path:
    """Write `folder`/report.html, one file that asks the network for nothing; returns its path.

    report: the content of report.json; image paths in it are relative to `folder`.
    Raises DataError where a field or an image is missing.
    """
    room = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_spelt_out,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters.update(mb=megabytes, percent=percent, data_uri=lambda name: _data_uri(folder / name))
    room.tests["right"] = lambda said, answer: normal(said) == normal(answer)
    page = room.get_template("report.html.j2").render(
        report,
        variants=VARIANTS,
        headline=headline(report),
        scored=tasks_of(report),
        header=_HEADER,
        rows=_rows(report),
        ratio=_frames(report, "fp16") / _frames(report, "coded"),
        bits={way: _bits(report["traffic"]["coded"]["ledger"], way) for way in ("up", "down")},
        parts={v: {way: _parts(report["traffic"][v]["ledger"], way) for way in ("up", "down")} for v in VARIANTS},
        chart=_chart(report["curves"]),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def megabytes(count: float) -> str:
    """Bytes as MB of 10^6, four digits or so."""
    return f"{count / 1e6:,.{1 if count >= 1e8 else 2}f} MB"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cell(text: str) -> str:
    """Text of a Markdown table's cell: it ends neither the cell nor the row, and holds no HTML."""
    return printable(text, None).replace("\\", r"\\").replace("|", r"\|").replace("<", "&lt;")


def _spelt_out(value: object) -> object:
    """What a page shows of a value, before HTML is escaped: control characters are told, not obeyed."""
    return printable(value, None, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def _frames(report: Report, variant: str) -> int:
    return report["traffic"][variant]["up_bytes"] + report["traffic"][variant]["down_bytes"]


def _compared(coded: float, fp16: float, less: str, more: str, even: str = "about the same", digits: int = 2) -> str:
    ratio, word = (fp16 / coded, less) if coded <= fp16 else (coded / fp16, more)
    return even if round(ratio, digits) == 1 else f"{ratio:.{digits}f} times {word}"


def _rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The figures of both runs under `_HEADER`."""
    runs = [report["traffic"][v] for v in VARIANTS]
    sizes = [(f"bytes {way}", *(run[f"{way}_bytes"] for run in runs)) for way in ("up", "down")]
    sizes.append(("bytes both ways", *(_frames(report, v) for v in VARIANTS)))
    sockets = [run["socket_bytes"] for run in runs]
    if None not in sockets:
        sizes.append(("on the socket, TLS and all", *sockets))
    rows = [(name, megabytes(a), megabytes(b), _compared(a, b, "fewer", "more")) for name, a, b in sizes]
    for task in tasks_of(report):
        name = f"{task.name}, chance {percent(task.coded.chance)}"
        rows.append((name, _accuracy(task.coded), _accuracy(task.fp16), task.verdict))
    a, b = (report["seconds"][v] for v in VARIANTS)
    rows.append(("training", f"{a:,.0f} s", f"{b:,.0f} s", _compared(a, b, "shorter", "longer")))
    for side in ("client", "server"):
        a, b = (report["memory"][v][side] for v in VARIANTS)
        rows.append((f"peak memory, {side}", megabytes(a), megabytes(b), _compared(a, b, "less", "more")))
    return rows


def _accuracy(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{percent(accuracy.share)} ({100 * low:.1f} to {100 * high:.1f})"


def _parts(ledger: Sequence[Report], direction: str) -> list[tuple[str, int]]:
    """(part, bytes) of a direction, the largest first and `rest` last."""
    sizes: defaultdict[str, int] = defaultdict(int)
    for row in ledger:
        if row["direction"] == direction:
            sizes[row["part"]] += row["bytes"]
    return sorted(sizes.items(), key=lambda item: (item[0] == "rest", -item[1]))


def _bits(ledger: Sequence[Report], direction: str) -> float:
    """Payload bits a feature of the full width; two bytes a feature is what the fp16 column counts."""
    rows = [row for row in ledger if row["direction"] == direction and row["part"] != "rest"]
    return 16 * sum(row["bytes"] for row in rows) / max(sum(row["fp16_bytes"] for row in rows), 1)


def _chart(curves: Report) -> dict[str, Any]:
    """Loss curves in a box of 1000 x 1000: paths, and ticks as (label, share of the axis)."""
    smooth = {v: _running_mean(curves[v]["loss"]) for v in VARIANTS}
    last = max(max(curves[v]["step"]) for v in VARIANTS)
    top = 1.05 * max(line.max() for line in smooth.values())
    lines = {
        v: {
            "raw": _path(np.asarray(curves[v]["step"]) / last, np.asarray(curves[v]["loss"]) / top),
            "smooth": _path(np.asarray(curves[v]["step"]) / last, smooth[v] / top),
            "final": smooth[v][-1],
        }
        for v in VARIANTS
    }
    return {"lines": lines, "x": _ticks(last), "y": _ticks(top)}


def _running_mean(values: Sequence[float]) -> np.ndarray:
    """Centred, over a fortieth of the run; shorter at the ends."""
    window = np.ones(len(values) // 40 + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{1000 * a:.1f},{1000 * (1 - b):.1f}" for a, b in zip(x, y, strict=True))


def _ticks(end: float) -> list[tuple[str, float]]:
    return [
        (f"{tick:g}", tick / end)
        for tick in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(0, end)
        if 0 <= tick <= end
    ]


def _data_uri(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise DataError(f"{path}: an image of the report cannot be read: {fault.strerror}") from fault
    return f"data:{mimetypes.guess_type(path.name)[0]};base64,{base64.b64encode(content).decode()}"
