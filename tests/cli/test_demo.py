"""`bitseam demo` on a tiny pair, in processes over TLS: only its weights and photographs are others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Tiny
from tiny_run import write_tiny_run

from bitseam.cli import demo

TASKS = ("recognition", "position", "existence")


@pytest.mark.slow
def test_the_demo_compares_its_two_runs(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSEAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "RECIPE", write_tiny_run(tmp_path, tiny))
    monkeypatch.setattr(demo, "fetch", lambda names: None)
    out = tmp_path / "demo"
    (out / "questions").mkdir(parents=True)
    lines = []
    for number, line in enumerate((tmp_path / "rows.jsonl").read_text().splitlines()):
        row = json.loads(line)
        image = shutil.copy(tmp_path / row["image"], out / "questions")
        lines.append(json.dumps({**row, "image": str(image), "task": TASKS[number % 3]}))
    for name in ("train", "test"):
        (out / "questions" / f"{name}.jsonl").write_text("\n".join(lines))
    demo.run_demo(out, ["seed=5"])
    report = json.loads((out / "report.json").read_text())
    assert report["comparison"]["seeds"] == [5]
    for side in ("coded", "fp16"):
        for task in TASKS:
            marks, counted = report["marks"]["right"][side]["5"][task], report["tasks"][task][side]
            assert counted == {"correct": marks.count("1"), "total": len(marks)}
    assert report["comparison"]["verdict"] in (out / "report.html").read_text()
