"""The short form of `make fuzz`, what it has found before, and that it would find more."""

from __future__ import annotations

import random
from pathlib import Path

import fuzz_campaign
import numpy as np
import pytest
from fuzz_campaign import FOUND, Population, Report, campaign, examine, forget_peak, keep, peak_bytes, replay
from fuzz_targets import Target, targets

from bitseam.errors import CodecError


def test_thousands_of_inputs_without_an_undocumented_error() -> None:
    *_, report = campaign(8000, seed=1)
    keep(report)
    assert report.held, f"kept in {FOUND}: {sorted(report.found)}"
    assert report.refused > 4000  # inputs that are all sound, or all senseless, would show nothing
    assert report.refused < 7900
    assert len(report.places) > 50


def test_what_was_found_before_stays_mended() -> None:
    by_name, report = {target.name: target for target in targets()}, Report(0)
    for path in sorted(FOUND.glob("*.*.*")):
        replay(path, by_name, report)
    assert report.held, sorted(report.found)


def planted(variant: int, raw: bytes) -> None:
    if len(raw) < 3:
        raise CodecError("documented")
    if raw[0] == 255:
        raise IndexError("planted")
    if raw[0] == 254:
        while fuzz_campaign.time.thread_time() < planted.until:  # type: ignore[attr-defined]
            pass
    if raw[0] == 253:
        np.ones(2 * fuzz_campaign.MEMORY, np.uint8)


@pytest.mark.parametrize(("first", "found"), [(255, "IndexError"), (254, "slow"), (253, "memory"), (7, "")])
def test_what_breaks_the_invariant_is_found_and_kept(
    first: int, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_campaign, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz_campaign, "MEMORY", 2**24)
    forget_peak()
    planted.until = fuzz_campaign.time.thread_time() + 0.3  # type: ignore[attr-defined]
    report = Report(0)
    examine(Target("planted", 1, [], planted, (CodecError,)), 0, bytes([first, 0, 0]), report, peak_bytes())
    assert report.held is (found == "")
    assert len(report.found) == bool(found)
    keep(report, tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == bytes([first, 0, 0])
        assert path.name.startswith("planted.0.")
        assert next(iter(report.found)).startswith(found)


def test_an_input_that_comes_farther_becomes_an_ancestor() -> None:
    population = Population(Target("planted", 1, [(0, b"seed")], planted, (CodecError,)))
    for _ in range(3):
        population.saw("a new place", 0, b"farther")
    assert population._inputs == [(0, b"seed"), (0, b"farther")]
    rng = random.Random(0)
    assert len({population.next(rng) for _ in range(200)}) > 100


def test_a_run_is_decided_by_its_seed() -> None:
    places = []
    for seed in (3, 3, 4):
        *_, report = campaign(300, seed)
        places.append(report.places)
    assert places[0] == places[1] != places[2]
