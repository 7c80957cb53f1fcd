"""The short form of `make fuzz-files`, what it has found before, and that it would find more."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fuzz_files
import pytest
from fuzz_campaign import keep
from fuzz_files import FOUND_FILES, Slot, file_campaign, replay_files, summary
from fuzz_targets import Target

from bitseam.errors import DataError


def test_hundreds_of_files_without_an_undocumented_error() -> None:
    *_, report = file_campaign(500, seed=1)
    keep(report, FOUND_FILES)
    assert report.held, f"kept in {FOUND_FILES}: {sorted(report.found)}"
    rows = summary(report, 1.0)
    assert rows["inputs"] == 500
    assert 250 < rows["refused"] < 480  # files that are all sound, or all senseless, would show nothing
    assert len(rows["by_target"]) == 12
    assert sum(row["worked"] > 0 for row in rows["by_target"].values()) > 9
    assert len(report.places) > 30


def test_what_was_found_in_files_before_stays_mended() -> None:
    report = replay_files(sorted(FOUND_FILES.glob("*.*.*")))
    assert report.held, sorted(report.found)


def planted(variant: int, raw: bytes) -> None:
    if raw[:1] == b"c":
        os.abort()
    if raw[:1] == b"h":
        time.sleep(60)
    raise DataError("documented")


@pytest.mark.parametrize(("first", "found"), [(b"c", "SIGABRT planted"), (b"h", "hang planted"), (b"x", "")])
def test_a_decoder_that_takes_the_process_with_it_is_found(
    first: bytes, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz_files, "HANG", 1)

    def same(raw: bytes, *_: object) -> bytes:
        return first + raw[1:]

    target = Target("planted", 1, [(0, b"a seed")], planted, (DataError,), (same,))
    *_, report = file_campaign(1, 0, lambda _: [target])
    assert sorted(report.found) == [found] * bool(found)
    assert report.held is not bool(found)
    assert report.inputs >= 1
    keep(report, tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [first + b" seed"] * bool(found)


def test_the_input_of_a_process_that_died_is_still_there() -> None:
    slot = Slot()
    assert slot.get() == (0, "", 0, b"")
    slot.watched(Target("name", 3, [], lambda *_: None, ())).run(2, bytes(1000))
    assert slot.get() == (1, "name", 2, bytes(1000))
