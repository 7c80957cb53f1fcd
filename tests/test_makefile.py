"""The Makefile takes the newest supported Python that is there, and says which it needs where there is none."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="there is no make")


def made_with(path: Path, *options: str) -> tuple[int, str]:
    """Of `make .venv/ready` with nothing on the PATH but what `path` holds: the exit status, and what it would run."""
    assert MAKE is not None
    command = [MAKE, "--dry-run", "--always-make", ".venv/ready", *options]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(path)}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def put(path: Path, name: str, version: tuple[int, int] | None) -> None:
    """A Python that says it is of that version, or a name that stands for nothing, as of pyenv."""
    told = f'exec {sys.executable} -c "import sys; sys.version_info = {(*(version or ()), 1)}; $2"'
    (path / name).write_text(f"#!/bin/sh\n{told if version else 'exit 127'}\n")
    (path / name).chmod(0o755)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3.11": (3, 11)}, "python3.11"),
        ({"python3.11": (3, 11), "python3.12": (3, 12), "python3.13": (3, 13)}, "python3.13"),
        ({"python3.11": (3, 11), "python3.13": None}, "python3.11"),
        ({"python3": (3, 12)}, "python3"),
        ({"python3": (3, 14), "python3.11": (3, 11)}, "python3.11"),
    ],
)
def test_the_newest_is_taken(there: dict[str, tuple[int, int] | None], taken: str, tmp_path: Path) -> None:
    for name, version in there.items():
        put(tmp_path, name, version)
    status, said = made_with(tmp_path)
    assert status == 0
    assert said.splitlines()[0] == f"{taken} -m venv .venv"


@pytest.mark.parametrize("version", [(3, 10), (3, 14), None])
def test_what_is_needed_is_told(version: tuple[int, int] | None, tmp_path: Path) -> None:
    put(tmp_path, "python3", version)
    status, said = made_with(tmp_path)
    assert status == 2
    assert "Bitseam needs Python 3.11, 3.12 or 3.13 with its venv module" in said
    assert "venv .venv" not in said


def test_a_python_that_is_named_is_taken(tmp_path: Path) -> None:
    status, said = made_with(tmp_path, "PYTHON=/opt/python")
    assert (status, said.splitlines()[0]) == (0, "/opt/python -m venv .venv")


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert f"Python {', '.join(told[:-1])} or {told[-1]} with" in (ROOT / "Makefile").read_text()
    assert project["requires-python"] == f">={told[0]}"
