"""Mutation testing of the rooms that compute: `make mutants` runs it, and goes on where it was stopped.

Why a harness of our own: mutmut 3.8 leaves out tables of modules and classes and whatever is decorated (properties,
`torch.no_grad`), and changes wording; cosmic-ray starts a process a mutant, and ours take four seconds to import.

A mutant is killed by a test that fails, crashes or takes ten times its usual time. Only tests that run the mutated line
are tried, of those that take three seconds at most, and for ten seconds at most: what that leaves out can count too few
as killed, never too many. The order is random by the seed, so a campaign that was stopped is a fair sample. State is in
runs/mutants: an outcome holds for as long as the mutated function and the test that killed it (of a survivor: all
tests) are what they were.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import hypothesis
import ledger
import workers
from baseline import ROOT, SOURCE, Baseline, load, record
from ledger import Ledger
from mutations import Mutant, mutants_of
from selection import Selection, sources
from workers import Task

STATE = ROOT / "runs" / "mutants"
ROOMS = {  # and the tests that are tried on each
    "quant": ("quant", "codecs"),
    "wire": ("wire",),
    "codecs": ("codecs", "vectors", "quant"),
    "streams": ("streams",),
    "models": ("models", "streams", "text", "data/test_images.py", "data/test_grey_and_alpha.py"),
}
FIRST = ("torch", "transformers", "numpy", "pytest", "hypothesis.strategies", "google.protobuf", "pydantic")


@dataclass
class Campaign:
    """One room."""

    room: str
    known: Baseline
    mutants: list[Mutant]
    ledger: Ledger
    folders: list[Path]
    unsound: set[str] = field(default_factory=set)
    sound: set[str] = field(default_factory=set)
    killers: dict[str, list[str]] = field(default_factory=dict)

    def run(self, order: Sequence[Mutant], until: float) -> None:
        """Try the mutants in this order until a time on the monotonic clock."""
        parent = os.getppid()
        tasks, theirs = multiprocessing.Pipe()
        server = _fork(lambda: (tasks.close(), workers.serve(theirs, self.known, self.folders)))
        theirs.close()  # so that each side hears when the other is no more
        selection = Selection(sources(self.room), self.known)
        try:
            for done, mutant in enumerate(order):
                if time.monotonic() > until or os.getppid() != parent:
                    break
                begun = time.monotonic()
                by = self._try(mutant, selection, tasks)
                self.ledger.add(mutant, by)
                print(
                    f"{done + 1}/{len(order)} {time.monotonic() - begun:.1f}s {mutant.function}: {by}", file=sys.stderr
                )
            tasks.send(None)
        finally:
            os.waitpid(server, 0)

    def _try(self, mutant: Mutant, selection: Selection, tasks: Connection) -> str:
        """What killed it, or "survived". Exchanging code is quicker, but too late for what has run at import."""
        by = "unfit"
        if mutant.live:
            by = self._until_sound(mutant, selection.running(mutant), partial(_ask, tasks), tasks)
        if by == "unfit" or (by == "survived" and selection.runs_at_import(mutant)):
            anew = partial(workers.imported_anew, seconds=self.known.tests)
            by = self._until_sound(mutant, selection.using(mutant), anew, tasks)
        return by

    def _until_sound(self, mutant: Mutant, tests: Sequence[str], run: Callable[[Task], str], tasks: Connection) -> str:
        """The first test to fail, of tests that pass without the mutant; those that killed one of its kin go first."""
        kin = self.killers.setdefault(f"{mutant.file}:{mutant.function}", [])
        left = [*(test for test in kin if test in tests), *(test for test in tests if test not in kin)]
        while left := [test for test in left if test not in self.unsound]:
            by = run(Task(mutant, tuple(left)))
            if "::" not in by:
                return by
            if by in self.sound or _ask(tasks, Task(None, (by,))) == "survived":
                self.sound.add(by)
                kin[:] = [by, *(test for test in kin if test != by)][:3]
                return by
            self.unsound.add(by)
        return "survived"


def _ask(tasks: Connection, task: Task) -> str:
    tasks.send(task)
    return tasks.recv()


def _fork(work: Callable[[], object]) -> int:
    """A process for `work`, whose words are not for the terminal."""
    pid = os.fork()
    if pid == 0:
        try:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1):
                os.dup2(nowhere, descriptor)
            work()
        finally:
            os._exit(0)
    return pid


def prepare(room: str, fresh: bool) -> Campaign:
    """The baseline, made anew where tests or sources have changed, and all mutants."""
    state = STATE / room
    state.mkdir(parents=True, exist_ok=True)
    folders = [ROOT / "tests" / name for name in ROOMS[room]]
    tests = [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*.py"))]
    all_tests = ledger.digest(*tests)
    stamp = ledger.digest(*tests, *SOURCE.rglob("*.py"))
    path = state / f"baseline-{stamp}.json"
    if not path.exists():
        print(f"{room}: every test once", flush=True)
        for old in state.glob("baseline-*.json"):
            old.unlink()
        os.waitpid(_fork(lambda: record(room, folders).save(path)), 0)
    known = load(path)
    _import(known.modules)
    if fresh:
        (state / "outcomes.jsonl").unlink(missing_ok=True)
    mutants = [mutant for file in sources(room) for mutant in mutants_of(SOURCE / file, file)]
    return Campaign(room, known, mutants, Ledger(state / "outcomes.jsonl", all_tests), folders)


def _import(names: Sequence[str]) -> None:
    """Before forking, what tests will import; what cannot be imported so is left to them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def report(campaign: Campaign) -> None:
    """Survivors and stale entries of the list of equivalents into runs/mutants, and the row of results."""
    same = ledger.equivalent(campaign.room)
    selection = Selection(sources(campaign.room), campaign.known)
    outcomes = {mutant: campaign.ledger.of(mutant) for mutant in campaign.mutants}
    lines = []
    for mutant, outcome in outcomes.items():
        if outcome is not None and not outcome.killed and mutant.key[:4] not in same:
            untried = "" if selection.using(mutant) or selection.running(mutant) else "  (no test runs it)"
            lines.append(f"{mutant.file}:{mutant.lines[0]} {mutant.function}{untried}")
            lines.append(f"  - {mutant.was}\n  + {mutant.now}")
    left = {mutant.key[:4] for mutant, outcome in outcomes.items() if outcome is None or not outcome.killed}
    there = {mutant.key[:4] for mutant in outcomes}
    for key in same:
        if key not in left:
            why = "was killed" if key in there else "is no mutant"
            lines.append(f"listed as equivalent, but {why}: {' | '.join(key)}")
    (STATE / campaign.room / "survivors.txt").write_text("\n".join(lines) + "\n")
    row = ledger.row(campaign.room, campaign.mutants, campaign.ledger)
    ledger.write_row(row)
    print(row, flush=True)


def run_room(room: str, jobs: int, seed: int, until: float, fresh: bool) -> None:
    """Run what is left of a room, in as many processes."""
    campaign = prepare(room, fresh)
    order = [mutant for mutant in campaign.mutants if campaign.ledger.of(mutant) is None]
    random.Random(seed).shuffle(order)
    print(f"{room}: {len(order)} of {len(campaign.mutants)} mutants to run", flush=True)
    for pid in [_fork(partial(campaign.run, order[job::jobs], until)) for job in range(jobs)]:
        os.waitpid(pid, 0)
    campaign.ledger.read()
    report(campaign)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", default=list(ROOMS), help=f"of {', '.join(ROOMS)}; all of them by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0, help="of the order of mutants")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--fresh", action="store_true", help="forget earlier outcomes")
    asked = parser.parse_args()
    os.chdir(ROOT)
    until = time.monotonic() + 60 * asked.minutes
    _import(FIRST)
    hypothesis.settings.register_profile(
        "mutants",
        derandomize=True,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("mutants")
    for room in asked.rooms:
        run_room(room, asked.jobs, asked.seed, until, asked.fresh)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    main()
