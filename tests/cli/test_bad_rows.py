"""Bad rows and live features, as people run them: two processes, workers, kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Tiny
from in_process import Command
from test_two_processes import Work, ended, finals, wait_for
from tiny_run import write_tiny_run

pytest_plugins = ["in_process"]
LIVE = ("--set", "data.cache_features=false")


@pytest.fixture
def work(tiny: Tiny, tmp_path: Path) -> Work:
    return Work(tmp_path, write_tiny_run(tmp_path, tiny))


def add(work: Work, **row: str) -> None:
    """One more row at the end of the file, which is for training and for the test."""
    whole = {"image": "0.png", "question": "is this a cat ?", "answer": "yes", "task": "cats"} | row
    path = work.folder / "rows.jsonl"
    path.write_text(f"{path.read_text()}\n{json.dumps(whole)}")


def test_D14_bad_rows_are_refused_before_the_first_step_or_left_out(work: Work, bitseam: Command) -> None:
    add(work, question="is this a cat ? " * 200)
    broken = work.folder / "broken.png"
    broken.write_bytes((work.folder / "0.png").read_bytes()[:2000])
    add(work, image="broken.png")
    status, output = bitseam("train", str(work.recipe), *LIVE)  # no server needed
    assert status == 1
    assert "2 rows cannot be used" in output
    assert "rows.jsonl:9: a row of" in output
    assert "rows.jsonl:10:" in output
    assert "broken.png: not a readable image" in output
    assert "intact" not in output  # there is no checkpoint
    assert not work.steps("client")

    skip = ("--set", "data.bad_rows=skip")
    with work.server():
        status, output = work.run("train", str(work.recipe), *LIVE, *skip)
        assert status == 0, output
        assert "2 rows are left out" in output
        assert "\\n" not in output  # each on a line of its own
        summary = json.loads((work.folder / "run/client/summary.json").read_text())
        assert summary["bad_rows"] == 2
        assert summary["tasks"]["cats"]["total"] == 8
        lines = (work.folder / "run/client/bad_rows.jsonl").read_text().splitlines()
        assert [json.loads(line)["line"] for line in lines] == [9, 10]
        status, output = bitseam("evaluate", str(work.recipe), *skip)
        assert status == 0, output
        assert "2 rows are left out" in output

    broken.write_bytes((work.folder / "0.png").read_bytes())
    status, output = bitseam("train", str(work.recipe), *skip)
    assert status == 1
    assert "began with 8 training rows, and the 9 of now have other pictures or texts" in output
    assert "left out then, and usable now" in output
    assert "rows.jsonl:10: " in output


@pytest.mark.slow
def test_live_features_with_workers_end_with_the_weights_of_a_run_without_also_when_killed(work: Work) -> None:
    words = (*LIVE, "--set", "train.steps=40", "--set", "train.checkpoint_every=10")
    with work.server(*words):
        status, output = work.run("train", str(work.recipe), *words, "--set", "data.workers=0")
        assert status == 0, output
    undisturbed = finals(work)
    (work.folder / "run").rename(work.folder / "undisturbed")
    with work.server(*words) as server:
        client = work.start("train", str(work.recipe), *words)
        wait_for(lambda: work.steps("client")[-1:] >= [20], server, client)
        client.kill()
        ended(client)  # its workers hold its output open no longer than it lives
        status, output = work.run("train", str(work.recipe), *words)
        assert status == 0, output
        assert "going on from" in output
    assert finals(work) == undisturbed
