"""The guide's loop over recipes, as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Tiny
from tiny_run import write_tiny_run

GUIDE = Path(__file__).parent.parent.parent / "docs" / "guide.md"


@pytest.mark.slow  # six processes
def test_codecs_are_compared_by_a_loop_over_recipes(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    command = tmp_path / "bitseam"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bitseam.cli.main "$@"\n')
    command.chmod(0o755)
    script = re.findall(r"```sh\n(for codec in.*?)```", GUIDE.read_text(), re.DOTALL)[0].replace("RECIPE", str(recipe))
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BITSEAM_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    logs = [tmp_path / "runs" / f"codec-{run}" / "client" / "log.jsonl" for run in (1, 2, 3)]
    assert all(log.exists() for log in logs), done.stdout + done.stderr
    last = [json.loads(log.read_text().splitlines()[-1]) for log in logs]
    assert [row["step"] for row in last] == [6, 6, 6]
    assert last[0]["up_bytes"] > last[1]["up_bytes"] > 0
    assert len({row["up_bytes"] for row in last}) == 3
