"""Fuzzing of files, for `make fuzz-files` and, shorter, for the tests.

The invariant of `fuzz_campaign`, with 10 s and 1 GB for each file, and one more: no decoder takes the process with it.
So inputs are examined in processes of some thousands each. One that dies, or is silent for longer than HANG seconds, is
a find, kept like the others; a new one goes on.
"""

from __future__ import annotations

import faulthandler
import mmap
import multiprocessing
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
import fuzz_campaign
from file_targets import ROOT, file_targets
from fuzz_campaign import FOUND, Report, campaign, command, replay
from fuzz_targets import Target

SECONDS, MEMORY, HANG = 10, 2**30, 20
FOUND_FILES = FOUND / "files"
_EACH = 5000  # inputs of a process
_SLOT = 2**23  # bytes; the longest input and its name fit
_ADDRESSES = 4 * 2**30  # bytes that a process may ask for beside what it has, so that a find does not stop the machine


class Slot:
    """The input that is being examined, where the parent still finds it when the process has died."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOT)

    def put(self, name: str, variant: int, raw: bytes) -> None:
        count, *_ = struct.unpack_from("<Q", self._memory)
        head = f"{name}.{variant}".encode()
        struct.pack_into(f"<QII{len(head)}s{len(raw)}s", self._memory, 0, count + 1, len(head), len(raw), head, raw)

    def get(self) -> tuple[int, str, int, bytes]:
        """How many inputs were put here so far; the last one's target, variant and bytes."""
        count, named, size = struct.unpack_from("<QII", self._memory)
        name, _, variant = self._memory[16 : 16 + named].decode().partition(".")
        return count, name, int(variant or 0), self._memory[16 + named : 16 + named + size]

    def watched(self, target: Target) -> Target:
        def run(variant: int, raw: bytes) -> None:
            self.put(target.name, variant, raw)
            target.run(variant, raw)

        return replace(target, run=run)


def file_campaign(
    inputs: int, seed: int, make: Callable[[Path], list[Target]] = file_targets, each: int = _EACH
) -> Iterator[Report]:
    """Fuzz all of the targets that `make` gives; the report so far, after each process."""
    with tempfile.TemporaryDirectory() as folder:
        targets, total, process = make(Path(folder)), Report(seed), 0
        while total.inputs < inputs:
            examine_all = partial(_fuzzed, min(each, inputs - total.inputs), seed * 1_000_000 + process)
            _absorb(total, _in_a_process(targets, examine_all))
            process += 1
            yield total


def replay_files(paths: Sequence[Path]) -> Report:
    """Run inputs that were kept, with the same limits."""
    with tempfile.TemporaryDirectory() as folder:
        targets, total = file_targets(Path(folder)), Report(0)

        def again(path: Path, watched: list[Target]) -> Report:
            replay(path, {target.name: target for target in watched}, report := Report(0))
            return report

        for path in paths:
            _absorb(total, _in_a_process(targets, partial(again, path)))
    return total


def _fuzzed(inputs: int, seed: int, targets: list[Target]) -> Report:
    *_, report = campaign(inputs, seed, targets)
    return report


def _in_a_process(targets: list[Target], examine_all: Callable[[list[Target]], Report]) -> Report:
    """What `examine_all` reports of the targets, or the input at which its process ended."""
    context, slot = multiprocessing.get_context("fork"), Slot()
    ours, theirs = context.Pipe(duplex=False)
    watched = [slot.watched(target) for target in targets]
    process = context.Process(target=_limited, args=(examine_all, watched, theirs), daemon=True)
    process.start()
    theirs.close()
    count, silent = 0, 0
    while not wait([ours], timeout=1.0):
        now = slot.get()[0]
        silent, count = (silent + 1 if now == count else 0), now
        if silent > HANG:
            process.kill()
    try:
        report: Report = ours.recv()
    except EOFError:  # it died
        process.join()
        count, *found = slot.get()
        report = Report(0, inputs=count, undocumented_errors=1)
        report.by_target[f"{found[0]}, lost"] = count
        code = process.exitcode or 0
        how = "hang" if silent > HANG else signal.Signals(-code).name if code < 0 else f"exit {code}"
        report.found[f"{how} {found[0]}"] = (found[0], found[1], found[2])
    process.join()
    return report


def _limited(examine_all: Callable[[list[Target]], Report], targets: list[Target], pipe: Connection) -> None:
    faulthandler.disable()  # the input says it all
    fuzz_campaign.SECONDS, fuzz_campaign.MEMORY = SECONDS, MEMORY
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + _ADDRESSES, held + _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(examine_all(targets))


def _absorb(total: Report, part: Report) -> None:
    if part.slowest_seconds > total.slowest_seconds:
        total.slowest_target = part.slowest_target
    for field in fields(Report):
        one, other = getattr(total, field.name), getattr(part, field.name)
        if field.name in ("slowest_seconds", "peak_growth_bytes"):
            setattr(total, field.name, max(one, other))
        elif isinstance(one, dict):  # counters add up, finds come together
            one.update({k: v for k, v in other.items() if k not in one} if field.name == "found" else other)
        elif field.name not in ("seed", "slowest_target"):
            setattr(total, field.name, one + other)


def summary(report: Report, seconds: float) -> dict[str, Any]:
    """What is written of a campaign, with the commit, for this report is kept with the sources."""
    refused = dict.fromkeys(report.by_target, 0)
    for place, count in report.places.items():
        refused[place.partition(": ")[0]] += count
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    rows = fuzz_campaign.summary(report, seconds) | {
        "by_target": {
            name: {"inputs": count, "refused": refused[name], "worked": count - refused[name]}
            for name, count in sorted(report.by_target.items())
        },
        "limits": {"seconds": SECONDS, "growth_bytes": MEMORY},
        "commit": commit.strip(),
    }
    del rows["peak_memory_bytes"]  # of this process, which examines nothing
    return rows


def main() -> None:
    def fuzz(inputs: int, seed: int, chosen: Callable[[Target], bool]) -> Iterator[Report]:
        return file_campaign(inputs, seed, lambda folder: list(filter(chosen, file_targets(folder))))

    command(__doc__, 200_000, fuzz, summary, FOUND_FILES)


if __name__ == "__main__":
    main()
