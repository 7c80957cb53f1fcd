"""Places that cannot be written, as fixtures: a test module names this one in `pytest_plugins`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Disk:
    """A file system of its own."""

    folder: Path

    def fill(self) -> None:
        """Take all the room that there is."""
        block = b"\0" * 4096
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(block):
                    pass
            except OSError:
                pass

    def free(self) -> None:
        (self.folder / "ballast").unlink()


Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts something at a new folder; skips the test where the system lets nobody do so."""
    mounted: list[Path] = []

    def mount(*options: str) -> Path:
        folder = tmp_path / f"mounted-{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", *options, folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def disk(mount: Mount) -> Disk:
    """One of 4 MB."""
    return Disk(mount("-t", "tmpfs", "-o", "size=4m", "none"))


@pytest.fixture
def read_only(mount: Mount, tmp_path: Path) -> Path:
    """An empty folder that not even root can write to."""
    (tmp_path / "writable").mkdir()
    folder = mount("--bind", str(tmp_path / "writable"))
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    return folder
