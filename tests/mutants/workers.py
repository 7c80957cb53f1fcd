"""One mutant in a forked process: its code in the place of the right one, and tests until one fails.

Mutants of function bodies fork from a process that has collected all tests, and exchange the code of the living
function. Mutants of what runs at import fork from one that has imported all but our package, and import that mutated.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest
from baseline import OPTIONS, SOURCE, Baseline, clear_caches
from mutations import Mutant, mutated

MEMORY = 4 * 2**30  # that a test may take on top of what is taken
SLACK, FACTOR = 2.0, 10.0  # seconds of processor that a test may take, over so many times its usual ones
PATIENCE = 60.0  # seconds on the clock, over the same: for what waits and does not compute


@dataclass(frozen=True)
class Task:
    """A mutant, none for a rehearsal, and the tests to try."""

    mutant: Mutant | None
    tests: tuple[str, ...]


def forked(work: Callable[[], str], seconds: float) -> str:
    """What `work` gives in a forked process; "crash" or "timeout" where it gives nothing."""
    ours, theirs = os.pipe()
    folder = tempfile.mkdtemp(prefix="mutant")
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["PYTEST_DEBUG_TEMPROOT"] = folder  # where pytest makes its tmp_path
            os.close(ours)
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in range(3):
                os.dup2(nowhere, descriptor)
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY,) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.write(theirs, work().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    in_time = select.select([ours], [], [], seconds)[0]
    told = os.read(ours, 4096).decode() if in_time else ""
    os.close(ours)
    if not told:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    shutil.rmtree(folder, ignore_errors=True)
    stopped = not in_time or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF)
    return told or ("timeout" if stopped else "crash")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class Runner:
    """The plugin that runs chosen items in their order until one fails."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    def until_failure(self, items: Sequence[pytest.Item]) -> str:
        """The test that failed, or "survived"."""
        import numpy
        import torch

        for item, after in zip(items, [*items[1:], None], strict=True):
            for seed in (random.seed, numpy.random.seed, torch.manual_seed):
                seed(0)
            signal.setitimer(signal.ITIMER_PROF, SLACK + FACTOR * self.seconds[item.nodeid])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                return self.failed
        return "survived"


class Collected(Runner):
    """Collects all tests, then answers tasks whose mutants are in function bodies, each in a fork."""

    def __init__(self, seconds: dict[str, float], tasks: Connection) -> None:
        super().__init__(seconds)
        self.tasks = tasks

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self._share_checkpoints(session.items)
        living = _living_functions()
        gc.freeze()
        while (task := self.tasks.recv()) is not None:
            chosen = [items[test] for test in task.tests if test in items]
            replaced = _exchanged(task.mutant, living) if task.mutant is not None else []
            if replaced is None:
                self.tasks.send("unfit")
                continue

            def work(replaced: list[tuple[FunctionType, CodeType]] = replaced, chosen: list = chosen) -> str:
                session.config._tmp_path_factory._basetemp = None  # but for what is shared, a folder of its own
                for function, code in replaced:
                    function.__code__ = code
                clear_caches()
                return self.until_failure(chosen)

            self.tasks.send(forked(work, patience(self.seconds, task)))
        return True

    def _share_checkpoints(self, items: Sequence[pytest.Item]) -> None:
        """Run the quickest test of those that use the session's checkpoints, which every fork then finds made."""
        using = [item for item in items if "tiny" in getattr(item, "fixturenames", ()) and item.nodeid in self.seconds]
        if len(items) > 1 and using:
            quickest = min(using, key=lambda item: self.seconds[item.nodeid])
            others = [item for item in items if item is not quickest]
            # Of another folder, or else what is set up for this one would be in the way of tests in others.
            after = next((item for item in others if item.path.parent != quickest.path.parent), others[0])
            quickest.config.hook.pytest_runtest_protocol(item=quickest, nextitem=after)


def patience(seconds: dict[str, float], task: Task) -> float:
    return PATIENCE + FACTOR * sum(seconds[test] for test in task.tests)


def _living_functions() -> dict[tuple[str, str, int], list[FunctionType]]:
    """Every function of ours by file, qualified name and line."""
    found: dict[tuple[str, str, int], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename.startswith(str(SOURCE)):
            code = thing.__code__
            found.setdefault((code.co_filename, code.co_qualname, code.co_firstlineno), []).append(thing)
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Of the functions in a module, those in classes too, those in functions not."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            if part.co_flags & 1:  # CO_OPTIMIZED: of a function, not of a class
                yield part
            else:
                yield from _codes(part)


def _exchanged(
    mutant: Mutant, living: dict[tuple[str, str, int], list[FunctionType]]
) -> list[tuple[FunctionType, CodeType]] | None:
    """Living functions and the code that they get; None where the module must be imported anew."""
    path = SOURCE / mutant.file
    right = {(code.co_qualname, code.co_firstlineno): code for code in _codes(compile(path.read_text(), path, "exec"))}
    replaced = []
    for code in _codes(compile(mutated(path, mutant.number), path, "exec")):
        name = code.co_qualname, code.co_firstlineno
        if code == right[name]:
            continue
        functions = living.get((str(path), *name), [])
        if not functions or any(len(f.__code__.co_freevars) != len(code.co_freevars) for f in functions):
            return None
        replaced += [(function, code) for function in functions]
    return replaced or None


class Chosen(Runner):
    """Runs the given tests after an import of its own; a fault at import is a failure too."""

    def __init__(self, seconds: dict[str, float], tests: Sequence[str]) -> None:
        super().__init__(seconds)
        self.tests = tests
        self.outcome = "at import"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not session.testsfailed:
            items = {item.nodeid: item for item in session.items}
            missing = [test for test in self.tests if test not in items]
            self.outcome = missing[0] if missing else self.until_failure([items[test] for test in self.tests])
        return True


class Mutated(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module of ours with its change."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        parts = ["bitseam", *Path(mutant.file).with_suffix("").parts]
        super().__init__(".".join(parts[:-1] if parts[-1] == "__init__" else parts), str(SOURCE / mutant.file))

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> object:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(mutated(Path(self.path), self.mutant.number), self.path, "exec")


def imported_anew(task: Task, seconds: dict[str, float]) -> str:
    """A task in a process that has not imported our package."""

    def work() -> str:
        assert task.mutant is not None
        sys.meta_path.insert(0, Mutated(task.mutant))
        signal.setitimer(signal.ITIMER_PROF, FACTOR * SLACK)
        chosen = Chosen(seconds, task.tests)
        files = dict.fromkeys(test.partition("::")[0] for test in task.tests)
        pytest.main([*OPTIONS, *files], plugins=[chosen])
        return chosen.outcome

    return forked(work, patience(seconds, task))


def serve(tasks: Connection, baseline: Baseline, folders: Sequence[Path]) -> None:
    """Collect and answer tasks until there are no more."""
    pytest.main([*OPTIONS, *map(str, folders)], plugins=[Collected(baseline.tests, tasks)])
