"""What a run writes and can do without: whatever becomes of its place, the run goes on, and so does what is written."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from disks import Disk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bitseam.runs.runlog import RunLog
from bitseam.serve.events import event_log
from bitseam.sessions.quota import Quotas

pytest_plugins = ["disks"]
PAD = "x" * 3000  # so that no row fits into what is left of a block


def take(log: RunLog, steps: range) -> None:
    for step in steps:
        log.step(step, {"loss": float(step), "pad": PAD})


def logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "client/log.jsonl").read_text().splitlines()]


def curve(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder / "client/tensorboard"))
    events.Reload()
    return [point.step for point in events.Scalars("loss")]


def test_O1_a_full_disk_costs_rows_and_nothing_else(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    with RunLog(disk.folder, "client", 60) as log:
        take(log, range(1, 11))
        disk.fill()
        take(log, range(11, 41))
        told = [message for message in caplog.messages if "log.jsonl" in message]
        assert len(told) == 1, told
        assert "the run goes on without it: [Errno 28]" in told[0]
        disk.free()
        take(log, range(41, 51))
    steps = logged(disk.folder)
    assert steps[:10] == list(range(1, 11))
    assert steps[-10:] == list(range(41, 51))
    assert 20 <= len(steps) < 50
    points = curve(disk.folder)
    assert points[:10] + points[-10:] == [*range(1, 11), *range(41, 51)]
    assert sum("can be written again" in message for message in caplog.messages) <= 2  # rows, and maybe curves


@pytest.mark.parametrize("place", ["client", "client/log.jsonl", "client/tensorboard", "."])
@pytest.mark.parametrize("fate", ["removed", "a file", "a folder", "a link to nothing", "a pipe"])
def test_O1_a_place_that_is_something_else_for_a_while(tmp_path: Path, place: str, fate: str) -> None:
    out = tmp_path / "out"
    with RunLog(out, "client", 9) as log:
        take(log, range(1, 4))
        (out / place).rename(tmp_path / "before")
        make = {
            "a file": lambda path: path.write_text("mine"),
            "a folder": lambda path: path.mkdir(),
            "a link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
            "a pipe": os.mkfifo,
            "removed": lambda path: None,
        }
        make[fate](out / place)
        reader = os.open(out / place, os.O_RDONLY | os.O_NONBLOCK) if fate == "a pipe" else None  # who never reads
        take(log, range(4, 34))  # more than a pipe holds
        if reader is not None:
            os.close(reader)
        if (out / place).is_dir() and not (out / place).is_symlink():
            shutil.rmtree(out / place)
        else:
            (out / place).unlink(missing_ok=True)
        (tmp_path / "before").rename(out / place)
        take(log, range(34, 37))
    assert set(logged(out)) >= {1, 2, 3, 34, 35, 36}
    assert set(curve(out)) >= {1, 2, 3, 34, 35, 36}


def test_O1_a_read_only_folder(read_only: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunLog(read_only, "server", 3) as log, event_log(read_only / "server/events.jsonl"):
        take(log, range(1, 4))
        logging.getLogger("bitseam.anything").warning("hello")
    assert sum("log.jsonl: cannot be written" in message for message in caplog.messages) == 1
    assert sum("events.jsonl: cannot be written" in message for message in caplog.messages) == 1


def test_O1_the_servers_log_goes_on_where_there_is_room_again(disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    path, ours = disk.folder / "server/events.jsonl", logging.getLogger("bitseam.test")
    with event_log(path):
        ours.warning("first")
        disk.fill()
        for _ in range(10):
            ours.warning(PAD)
        disk.free()
        ours.warning("last")
    messages = [json.loads(line)["message"] for line in path.read_text().splitlines()]
    assert messages[0] == "first"
    assert "last" in messages
    assert len(messages) < 10
    assert "Traceback" not in capfd.readouterr().err


def test_O1_half_a_line_of_a_killed_process_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"message": "whole"}\n{"messa')
    with event_log(tmp_path / "events.jsonl"):
        logging.getLogger("bitseam.test").warning("next")
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["message"] == "next"


def test_O1_quotas_are_kept_again(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitseam.sessions.quota._SAVE_EVERY", 0.0)
    path = disk.folder / "quota.json"
    quotas = Quotas(path=path)
    for i in range(200):
        quotas.count(f"client {i:0100d}", steps=1)
    disk.fill()
    for i in range(300):
        quotas.count(f"another {i:0100d}", steps=1)
    assert Quotas(path=path).used(f"client {199:0100d}").steps == 1
    disk.free()
    quotas.count("Klinik Süd 1", bytes=5)
    assert Quotas(path=path).used(f"another {299:0100d}").steps == 1
    assert Quotas(path=path).used("Klinik Süd 1").bytes == 5


@pytest.mark.parametrize(
    "strange", ['{"step": 3, "lo', "not JSON", '{"loss": 1}', "[]", "7", '{"step": "3"}', "\udcff\udcfe", "[" * 100_000]
)
def test_O2_a_line_that_is_no_row_never_blocks_a_resume(
    tmp_path: Path, strange: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "client/log.jsonl"
    path.parent.mkdir()
    rows = ['{"step": 1, "loss": 1.0}', '{"step": 2, "loss": 1.0}', strange, '{"step": 4, "loss": 1.0}']
    path.write_bytes("\n".join(rows).encode(errors="surrogateescape") + b"\n")
    with RunLog(tmp_path, "client", 9) as log:
        take(log, range(4, 6))
    assert logged(tmp_path) == [1, 2, 4, 5]
    assert "1 lines that are no rows" in caplog.text


def test_a_run_that_goes_back_has_one_curve(tmp_path: Path) -> None:
    for steps in (range(1, 6), range(4, 9)):
        with RunLog(tmp_path, "client", 9) as log:
            take(log, steps)
    assert logged(tmp_path) == list(range(1, 9))
    assert curve(tmp_path) == list(range(1, 9))
