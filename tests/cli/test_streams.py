"""Commands in pipes, on full disks, under supervisors and in terminals of every kind; real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import Tiny
from tiny_run import write_tiny_run

from bitseam.transport import make_certificates

COMMAND = f"{sys.executable} -m bitseam.cli.main"


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line, in which `bitseam` is ours; the status is that of the first command of a pipe."""
    script = f'set -o pipefail; bitseam() {{ {COMMAND} "$@"; }}; {line}'
    settings = os.environ | environment
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=settings, timeout=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder)
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "bitseam certs {folder} --fingerprints | true",
        "bitseam --help | head -1",
        "bitseam certs {folder} --fingerprints >&-",
        "bitseam certs {folder} --fingerprints <&- >&- 2>&-",
        "setsid bash -c '{command} certs {folder} --fingerprints' </dev/null",
    ],
)
def test_O14_a_reader_that_is_gone_ends_nothing(folder: Path, line: str) -> None:
    done = shell(line.format(folder=folder, command=COMMAND))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("line", ["bitseam certs {folder} --fingerprints > /dev/full", "bitseam --help > /dev/full"])
def test_O14_a_product_that_is_lost_is_told(folder: Path, line: str) -> None:
    done = shell(line.format(folder=folder))
    assert done.returncode == 1
    assert done.stderr == "standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("end", ["2>&-", "2>/dev/full", "2>&1 | true", "2> >(true)"])
def test_O14_an_error_that_nobody_reads_keeps_its_status(tmp_path: Path, end: str) -> None:
    done = shell(f"bitseam certs {tmp_path}/g --host a:1 {end}")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_O14_a_file_never_gets_the_number_of_a_stream_that_was_closed(tmp_path: Path) -> None:
    script = "import os, sys; from bitseam.cli import streams; streams.take_over(); print('a'); "
    script += f"file = open({str(tmp_path / 'checkpoint')!r}, 'w'); os.write(1, b'x'); os.write(2, b'x'); print('b')"
    done = shell(f'{sys.executable} -c "{script}" <&- >&- 2>&-')
    assert done.returncode == 0
    assert (tmp_path / "checkpoint").read_text() == ""


def test_O14_streams_are_closed_without_a_word_and_their_descriptors_stay() -> None:
    """In development mode Python tells of faults at its end; from 3.13 on it does so in every mode."""
    script = "import os, sys; from bitseam.cli import streams; streams.take_over(); print('a'); sys.stdout.close(); "
    done = shell(f"{sys.executable} -X dev -c \"{script} os.write(1, b'b')\"")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\nb", "")


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict", "TERM": "dumb", "LC_ALL": "C"},
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_other_encodings_and_terminals_are_no_fault(tmp_path: Path, environment: dict[str, str]) -> None:
    done = shell(f"bitseam certs {tmp_path}/g --host büro.example --client ü", **environment)
    assert done.returncode == 1
    assert "error: client" in done.stderr
    assert "Traceback" not in done.stderr
    done = shell("bitseam --help", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


@pytest.fixture
def proxied() -> Iterator[tuple[str, list[str]]]:
    """A proxy's address, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_O11_loopback_goes_to_no_proxy(
    proxied: tuple[str, list[str]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitseam.serve.status import _read

    proxy, asked = proxied
    monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(OSError, match="refused"):
        _read("http://127.0.0.1:9/metrics")
    assert asked == []


@pytest.mark.parametrize("key", ["network.address", "network.metrics"])
def test_O9_the_command_names_the_key(tiny: Tiny, tmp_path: Path, key: str) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    done = shell(f"bitseam train {recipe} --set {key}=seam..example.org:56301")
    assert done.returncode == 1
    assert f"error: {recipe}: {key} 'seam..example.org:56301': write host:port" in done.stderr
    assert not (tmp_path / "run").exists()
