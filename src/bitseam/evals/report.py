"""The demo's report: one self-contained HTML page, and its figures as a table for a terminal or a README.

Of two runs of one recipe, `coded` and `fp16`, the report states

    ratio               (fp16 up + down) / (coded up + down), lengths of serialized frames
    accuracy            with its 95 % interval: Wilson's for one seed, over seeds and images for several
    difference          what `bitseam.evals.compare` says of both runs' answers to the same questions, where the report
                        has them (`marks`); where it has only counts of right answers, nothing is concluded from them
    above chance        the lower end of an accuracy's own interval is above chance

MB is 10^6 bytes. The loss is in nats an answer token.
"""

from __future__ import annotations

import base64
import mimetypes
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup
from rich.table import Table

from bitseam.console import plain
from bitseam.errors import DataError, printable
from bitseam.evals.answers import normal
from bitseam.evals.compare import MARGIN, Comparison, Difference, Estimate
from bitseam.evals.curves import chart
from bitseam.evals.outcome import VARIANTS, Accuracy, Mean, Report, outcome_of

_HEADER = ("", *VARIANTS, "coded against fp16")


@contextmanager
def _complete() -> Iterator[None]:
    """Tell a field that the report lacks by name."""
    try:
        yield
    except (KeyError, UndefinedError) as fault:
        raise DataError(f"report.json lacks a field: {fault}; write it anew with `bitseam demo`") from fault


@_complete()
def headline(report: Report) -> str:
    """The result in one sentence: bytes, and what the comparison of the answers shows where there is one."""
    found = outcome_of(report)
    coded, fp16 = (_frames(report, v) for v in VARIANTS)
    ratio = _compared(coded, fp16, "fewer bytes than", "more bytes than", "as many bytes as", 1)
    sent = f"The coded run sent {ratio} fp16, up and down together"
    if found.comparison:
        of = found.comparison.mean.points
        told = f"{signed(of.value)} points, 95 % interval {signed(of.low)} to {signed(of.high)}"
        return f"{sent}, and is {found.comparison.verdict} on the mean of {len(found.tasks)} tasks: {told}."
    means = " and ".join(f"{found.means[v].value:.1f} % {v}" for v in VARIANTS)
    return f"{sent}; the mean accuracy of {len(found.tasks)} tasks was {means}."


@_complete()
def remarks(report: Report) -> list[str]:
    """What to know with the headline, a sentence each: what was not compared, and tasks that are not above chance."""
    found = outcome_of(report)
    missing = "The report has counts of right answers alone, so that the difference of accuracies cannot be judged."
    caution = found.comparison.caution if found.comparison else missing
    chance = [
        f"On {task.name}, {task.chance} ({percent(task.coded.share)} against {percent(task.fp16.share)})."
        for task in found.tasks
        if task.chance
    ]
    return [*filter(None, [caution]), *chance]


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
    room.filters.update(
        mb=megabytes,
        percent=percent,
        signed=signed,
        difference=told_difference,
        data_uri=lambda name: _data_uri(folder / name),
    )
    room.tests["right"] = lambda said, answer: normal(said) == normal(answer)
    page = room.get_template("report.html.j2").render(
        report,
        variants=VARIANTS,
        headline=headline(report),
        remarks=remarks(report),
        found=outcome_of(report),
        margin=MARGIN,
        header=_HEADER,
        rows=_rows(report),
        ratio=_frames(report, "fp16") / _frames(report, "coded"),
        bits={way: _bits(report["traffic"]["coded"]["ledger"], way) for way in ("up", "down")},
        parts={v: {way: _parts(report["traffic"][v]["ledger"], way) for way in ("up", "down")} for v in VARIANTS},
        chart=chart({v: report["curves"][v] for v in VARIANTS}),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def megabytes(count: float) -> str:
    """Bytes as MB of 10^6, four digits or so."""
    return f"{count / 1e6:,.{1 if count >= 1e8 else 2}f} MB"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def told_difference(difference: Difference) -> str:
    """A difference in points with its 95 % interval and McNemar's p, or the least and greatest p of several seeds."""
    ps = [_p(value) for value in (min(difference.p.values()), max(difference.p.values()))]
    return f"{_points(difference.points)}, McNemar's p {' to '.join(ps[: len(difference.p)])}"


def _points(of: Estimate) -> str:
    return f"{signed(of.value)} points ({signed(of.low)} to {signed(of.high)})"


def signed(value: float) -> str:
    """A difference with its sign, one digit after the point; nothing is neither more nor less."""
    return f"{value:+.1f}" if round(value, 1) else "0.0"


def _p(value: float) -> str:
    return "under 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


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
    found = outcome_of(report)
    for task in found.tasks:
        name = f"{task.name}, chance {percent(task.coded.chance)}"
        said = [told_difference(task.difference) if task.difference else "", task.chance]
        rows.append((name, _accuracy(task.coded), _accuracy(task.fp16), "; ".join(filter(None, said))))
    coded, fp16 = (found.means[v] for v in VARIANTS)
    rows.append(("mean of the tasks", _mean(coded), _mean(fp16), _verdict(found.comparison)))
    if coded.spread is not None and fp16.spread is not None:
        spreads = (f"{coded.spread:.2f} points", f"{fp16.spread:.2f} points")
        rows.append(("its standard deviation over seeds", *spreads, ""))
    a, b = (report["seconds"][v] for v in VARIANTS)
    rows.append(("training", f"{a:,.0f} s", f"{b:,.0f} s", _compared(a, b, "shorter", "longer")))
    for side in ("client", "server"):
        a, b = (report["memory"][v][side] for v in VARIANTS)
        rows.append((f"peak memory, {side}", megabytes(a), megabytes(b), _compared(a, b, "less", "more")))
    return rows


def _accuracy(accuracy: Accuracy) -> str:
    low, high = accuracy.interval
    return f"{percent(accuracy.share)} ({100 * low:.1f} to {100 * high:.1f})"


def _mean(mean: Mean) -> str:
    of = mean.estimate
    return percent(mean.value / 100) + (f" ({of.low:.1f} to {of.high:.1f})" if of else "")


def _verdict(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    seeds = f"{count} seeds" if (count := len(comparison.seeds)) > 1 else "one seed"
    return f"{told_difference(comparison.mean)}; {comparison.verdict}, {seeds}"


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


def _data_uri(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise DataError(f"{path}: an image of the report cannot be read: {fault.strerror}") from fault
    return f"data:{mimetypes.guess_type(path.name)[0]};base64,{base64.b64encode(content).decode()}"
