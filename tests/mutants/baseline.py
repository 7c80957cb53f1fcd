"""Which tests run which line, and how long each takes: every test once, on the sources as they are."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "src" / "bitseam"
SLOWEST = 3.0  # seconds of processor of a test that is used: others may be at work on the machine
QUICK = 0.1  # seconds
OPTIONS = ["-n", "0", "-s", "-q", "-p", "no:cacheprovider", "-o", "timeout=0", "--no-header", "--no-summary"]


@dataclass(frozen=True)
class Baseline:
    """`tests`: seconds of processor of each that is used, in the order that they are tried. `lines`: tests of a file's
    line, as places in that order. `imported`: a file's lines that run when it is imported. `modules`: what the tests
    imported, ours left out. `left_out`: tests that fail, are skipped or too slow."""

    tests: dict[str, float]
    lines: dict[str, dict[int, list[int]]]
    imported: dict[str, list[int]]
    modules: list[str]
    left_out: list[str]

    def covering(self, file: str, first: int, last: int) -> set[int]:
        lines = self.lines.get(file, {})
        return {test for line in range(first, last + 1) for test in lines.get(line, ())}

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def load(path: Path) -> Baseline:
    raw = json.loads(path.read_text())
    lines = {file: {int(line): tests for line, tests in of.items()} for file, of in raw.pop("lines").items()}
    return Baseline(lines=lines, **raw)


def clear_caches() -> None:
    """Forget what functions of ours have cached."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "bitseam":
            for function in list(vars(module).values()):
                if hasattr(function, "cache_clear"):
                    function.cache_clear()


class Recorder:
    """The plugin that names each test to coverage, and keeps its time and whether it passed."""

    def __init__(self, measure: coverage.Coverage) -> None:
        self.measure = measure
        self.seconds: dict[str, float] = {}
        self.unfit: set[str] = set()  # failed or skipped

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        clear_caches()  # or a line would seem to be run by the first test alone that needs what it makes
        self.measure.switch_context(item.nodeid)
        begun = sum(os.times()[:4])
        result = yield
        self.seconds[item.nodeid] = sum(os.times()[:4]) - begun
        self.measure.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.unfit.add(report.nodeid)


def record(room: str, folders: Iterable[Path]) -> Baseline:
    """Run the tests of these folders. For a process of its own, before anything of ours is imported."""
    measure = coverage.Coverage(data_file=None, include=[f"{SOURCE / room}/*"], messages=False)
    recorder = Recorder(measure)
    measure.start()
    pytest.main([*OPTIONS, *map(str, folders)], plugins=[recorder])
    measure.stop()
    fit = {test: spent for test, spent in recorder.seconds.items() if test not in recorder.unfit and spent <= SLOWEST}
    order = ranked(fit, f"tests/{room}/")
    places = {test: place for place, test in enumerate(order)}
    data = measure.get_data()
    lines, imported = {}, {}
    for measured in data.measured_files():
        file = str(Path(measured).relative_to(SOURCE))
        contexts = data.contexts_by_lineno(measured)
        lines[file] = {line: sorted(places[t] for t in tests if t in places) for line, tests in contexts.items()}
        imported[file] = sorted(line for line, tests in contexts.items() if "" in tests)
    ours = {"bitseam", "conftest", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    modules = sorted(name for name in sys.modules if name.partition(".")[0] not in ours)
    return Baseline(order, lines, imported, modules, sorted(set(recorder.seconds) - set(fit)))


def ranked(seconds: dict[str, float], own: str) -> dict[str, float]:
    """Those of no time first; then one variant of each function, then another of each; of those, the room's own."""
    seen: dict[str, int] = {}
    rank = {}
    for test in sorted(seconds, key=lambda test: (seconds[test], test)):
        function = test.partition("[")[0]
        seen[function] = seen.get(function, 0) + 1
        rank[test] = (seen[function] if seconds[test] > QUICK else 0, not test.startswith(own), seconds[test], test)
    return {test: seconds[test] for test in sorted(seconds, key=rank.__getitem__)}
