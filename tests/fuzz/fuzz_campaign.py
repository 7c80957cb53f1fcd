"""Fuzzing, for `make fuzz` and, shorter, for the tests.

The invariant: for any input, a target returns or raises an error that it documents, within SECONDS of processor time,
and the process never holds more than MEMORY bytes over what it held when all seeds had run.

Inputs are mutations of others. One that is refused at a place where none of its variant was before becomes an ancestor
of later ones: what passes the first checks is sought, as coverage would have it. A run is decided by its seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from fuzz_targets import Target, targets

SECONDS = 0.5
MEMORY = 128 * 2**20
FOUND = Path(__file__).parent / "found"

_STATUS = Path("/proc/self/status")
_ANCESTORS = 400  # of a target, beside its seeds


@dataclass
class Report:
    """What a run has seen. found: by where it was raised, one input each."""

    seed: int
    inputs: int = 0
    refused: int = 0
    undocumented_errors: int = 0
    slow: int = 0
    over_memory: int = 0
    slowest_seconds: float = 0.0
    slowest_target: str = ""
    peak_growth_bytes: int = 0
    by_target: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)  # where inputs were refused
    found: dict[str, tuple[str, int, bytes]] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return not self.undocumented_errors and not self.slow and not self.over_memory


class Population:
    """The inputs of one target that others are made of."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._inputs = list(target.seeds)
        self._seen: set[object] = set()

    def next(self, rng: random.Random) -> tuple[int, bytes]:
        recent = len(self._inputs) > 20 and rng.random() < 0.5
        variant, raw = rng.choice(self._inputs[-20:] if recent else self._inputs)
        for _ in range(1 if rng.random() < 0.8 else 3):
            raw = rng.choice(self.target.mutations)(raw, rng, variant)
        if rng.random() < 0.05:
            variant = rng.randrange(self.target.variants)
        return variant, raw

    def saw(self, what: object, variant: int, raw: bytes) -> None:
        """An input came to `what`."""
        if self.target.breeds and (variant, what) not in self._seen and len(raw) < 2**14:
            self._seen.add((variant, what))
            if len(self._inputs) > len(self.target.seeds) + _ANCESTORS:
                del self._inputs[len(self.target.seeds)]
            self._inputs.append((variant, raw))


def examine(target: Target, variant: int, raw: bytes, report: Report, base: int) -> object:
    """Run one input; returns where it came to."""
    start, place = time.thread_time(), "taken"
    try:
        target.run(variant, raw)
    except target.documented as error:
        report.refused += 1
        place = _place(error)
        report.places[f"{target.name}: {place}"] += 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        report.undocumented_errors += 1
        report.found.setdefault(f"{type(error).__name__} {_place(error)}", (target.name, variant, raw))
    seconds = time.thread_time() - start
    report.inputs += 1
    report.by_target[target.name] += 1
    if seconds > report.slowest_seconds:
        report.slowest_seconds, report.slowest_target = seconds, target.name
    if seconds > SECONDS:
        report.slow += 1
        report.found.setdefault(f"slow {target.name} {place}", (target.name, variant, raw))
    growth = peak_bytes() - base
    if growth > report.peak_growth_bytes:
        report.peak_growth_bytes = growth
        if growth > MEMORY:
            report.over_memory += 1
            report.found.setdefault(f"memory {target.name} {place}", (target.name, variant, raw))
    return place


def campaign(inputs: int, seed: int, chosen: Sequence[Target] | None = None) -> Iterator[Report]:
    """Fuzz all targets in turn, those of `targets` by default; the report so far, every 10000 inputs and at the end."""
    torch.set_num_threads(1)
    rng, report = random.Random(seed), Report(seed)
    populations = [Population(target) for target in (targets() if chosen is None else chosen)]
    for population in populations:
        for variant, raw in population.target.seeds:
            population.saw(examine(population.target, variant, raw, report, peak_bytes()), variant, raw)
    assert report.held, report.found
    forget_peak()
    report, base = Report(seed), peak_bytes()
    weights = [population.target.weight for population in populations]
    while report.inputs < inputs:
        (population,) = rng.choices(populations, weights)
        variant, raw = population.next(rng)
        population.saw(examine(population.target, variant, raw, report, base), variant, raw)
        if report.inputs % 10_000 == 0 and report.inputs < inputs:
            yield report
    yield report


def replay(path: Path, found_by: dict[str, Target], report: Report) -> None:
    """Run an input that was kept."""
    name, variant, _ = path.name.split(".")
    examine(found_by[name], int(variant), path.read_bytes(), report, peak_bytes())


def keep(report: Report, folder: Path = FOUND) -> None:
    """Write what was found, each a file that the tests run from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, variant, raw in report.found.values():
        (folder / f"{name}.{variant}.{hashlib.sha256(raw).hexdigest()[:12]}").write_bytes(raw)


def peak_bytes() -> int:
    """The most that this process has held, since `forget_peak` where the system is Linux."""
    if not _STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with _STATUS.open("rb") as status:
        return int(status.read().partition(b"VmHWM:")[2].split(None, 1)[0]) * 1024


def forget_peak() -> None:
    """The peak is what is held now (proc(5), clear_refs)."""
    if _STATUS.exists():
        _STATUS.with_name("clear_refs").write_text("5")


def command(
    description: str | None,
    inputs: int,
    fuzz: Callable[[int, int, Callable[[Target], bool]], Iterator[Report]],
    rows: Callable[[Report, float], dict[str, Any]],
    folder: Path,
) -> None:
    """A command line. fuzz: inputs, seed, which targets -> reports; rows: report, seconds -> what is written."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path)
    parser.add_argument("--inputs", type=int, default=inputs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="targets; all by default")
    options = parser.parse_args()
    start, report = time.perf_counter(), Report(options.seed)
    for report in fuzz(options.inputs, options.seed, lambda target: not options.only or target.name in options.only):
        rate = report.inputs / (time.perf_counter() - start)
        print(f"{report.inputs} inputs, {rate:.0f} a second, {sorted(report.found)}", flush=True)
    keep(report, folder)
    text = json.dumps(rows(report, time.perf_counter() - start), indent=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")
    print(text)
    sys.exit(not report.held)


def summary(report: Report, seconds: float) -> dict[str, Any]:
    """What is written of a campaign."""
    names = ("inputs", "refused", "undocumented_errors", "slow", "over_memory", "peak_growth_bytes", "slowest_target")
    return {name: getattr(report, name) for name in names} | {
        "seed": report.seed,
        "seconds": round(seconds, 1),
        "slowest_seconds": round(report.slowest_seconds, 4),
        "peak_memory_bytes": peak_bytes(),
        "limits": {"seconds": SECONDS, "growth_bytes": MEMORY},
        "by_target": dict(report.by_target),
        "places_of_refusal": len(report.places),
        "found": sorted(report.found),
    }


def _place(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    frame = traceback.extract_tb(error.__traceback__, limit=-1)[0] if error.__traceback__ else None
    return f"{Path(frame.filename).name}:{frame.lineno}" if frame else ""


def main() -> None:
    def fuzz(inputs: int, seed: int, chosen: Callable[[Target], bool]) -> Iterator[Report]:
        return campaign(inputs, seed, list(filter(chosen, targets())))

    command(__doc__, 1_000_000, fuzz, summary, FOUND)


if __name__ == "__main__":
    main()
