"""A real pair of processes whose folders, pipes and terminals are taken away while they train."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Tiny
from disks import Disk
from prometheus_client.parser import text_string_to_metric_families
from test_two_processes import Work, ended, wait_for
from tiny_run import write_tiny_run

from bitseam.cli.client import run_training
from bitseam.cli.server import run_server
from bitseam.config import load_recipe
from bitseam.errors import ClaimedError
from bitseam.serve.status import read_status

pytest_plugins = ["disks"]
LONG = ("--set", "train.steps=100000", "--set", "train.checkpoint_every=50000")


def start(folder: Path, *words: str, **streams: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bitseam.cli.main", *words]
    environment = os.environ | {"BITSEAM_CACHE": str(folder / "cache")}
    return subprocess.Popen(command, text=True, env=environment, **streams)  # type: ignore[call-overload]


def server_step(address: str) -> int:
    with urllib.request.urlopen(address) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return int(next(family for family in families if family.name == "bitseam_step").samples[0].value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_O1_O2_O13_O14_a_pair_outlives_a_full_disk_its_log_and_its_readers(
    tiny: Tiny, tmp_path: Path, disk: Disk
) -> None:
    recipe, run = str(write_tiny_run(tmp_path, tiny)), disk.folder / "run"
    where = f"[::1]:{free_port()}" if socket.has_ipv6 else f"127.0.0.1:{free_port()}"
    options = (*LONG, "--set", f"out={run}", "--set", f"network.metrics={where}")
    told = tmp_path / "server.log"
    with told.open("w") as log:
        server = start(tmp_path, "serve", recipe, *options, stdout=log, stderr=log)
    client = start(tmp_path, "train", recipe, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert client.stdout is not None
        assert client.stderr is not None
        client.stdout.close()  # both readers are gone from the start
        client.stderr.close()
        rows = run / "client/log.jsonl"
        wait_for(lambda: rows.exists() and len(rows.read_text().splitlines()) > 3, server, client)
        note = run / "server/metrics.json"
        assert json.loads(note.read_text()) == {"metrics": f"http://{where}/metrics"}

        disk.fill()
        full = server_step(f"http://{where}/metrics")
        wait_for(lambda: server_step(f"http://{where}/metrics") > full + 40, server, client)
        same = load_recipe(recipe, {"out": str(run)})
        for second, side, first in ((run_server, "server", server), (run_training, "client", client)):
            with pytest.raises(ClaimedError, match=rf"run/{side}: another process \(pid {first.pid}\) runs in this"):
                second(same)
        disk.free()
        note.unlink()
        room = server_step(f"http://{where}/metrics")
        wait_for(lambda: json.loads(rows.read_text().splitlines()[-1])["step"] > room + 5, server, client)
        wait_for(note.exists, server, client)
        assert read_status(note, span=0.1)[1][0].client == "client"

        client.send_signal(signal.SIGHUP)
        client.wait(60)
        assert client.returncode == 128 + signal.SIGHUP
        sides = {side: sorted(path.name for path in (run / side).glob("step-*")) for side in ("client", "server")}
        assert sides["client"] == sides["server"]
        assert int(sides["client"][-1][5:]) > room
        server.send_signal(signal.SIGHUP)
        server.wait(60)
        assert server.returncode == 0, told.read_text()
    finally:
        for process in (client, server):
            process.kill()
            process.wait()
    text = " ".join(told.read_text().split())
    assert "Traceback" not in text, text
    assert text.count("the run goes on without it") <= 3  # log, curves, events
    assert "the client stopped" not in text
    steps = [json.loads(line)["step"] for line in rows.read_text().splitlines()]
    assert steps == sorted(set(steps))
    for line in (run / "server/events.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.slow
def test_a_client_outlives_its_terminal_under_nohup_and_ends_its_step_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    work = Work(tmp_path, write_tiny_run(tmp_path, tiny))
    rows = tmp_path / "run/client/log.jsonl"

    def last() -> int:
        return json.loads(rows.read_text().splitlines()[-1])["step"] if rows.exists() else 0

    def on_terminal(ignoring: bool) -> tuple[subprocess.Popen[str], int]:
        master, slave = pty.openpty()
        client = start(
            tmp_path,
            "train",
            str(work.recipe),
            *LONG,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: _lead_terminal(ignoring),
        )
        os.close(slave)
        return client, master

    with work.server(*LONG) as server:
        client, master = on_terminal(ignoring=True)
        wait_for(lambda: last() > 3, server, client)
        os.close(master)
        now = last()
        wait_for(lambda: last() > now + 20, server, client)
        client.send_signal(signal.SIGTERM)
        assert client.wait(60) == 128 + signal.SIGTERM
        begun = last()
        client, master = on_terminal(ignoring=False)
        wait_for(lambda: last() > begun + 3, server, client)
        os.close(master)
        assert client.wait(60) == 128 + signal.SIGHUP
        assert work.steps("client")[-1] == work.steps("server")[-1] > begun


def _lead_terminal(ignoring: bool) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if ignoring:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.slow
def test_a_server_that_has_no_files_left_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    work = Work(tmp_path, write_tiny_run(tmp_path, tiny))
    with work.server(*LONG) as server:
        note = tmp_path / "run/server/metrics.json"
        wait_for(note.exists, server)
        client = work.start("train", str(work.recipe), *LONG)
        rows = tmp_path / "run/client/log.jsonl"
        wait_for(lambda: rows.exists() and len(rows.read_text().splitlines()) > 3, server, client)
        open_now = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (open_now, limits[1]))
        port = int(work.recipe.read_text().partition("localhost:")[2].partition('"')[0])
        strangers = []
        with suppress(OSError):
            for _ in range(50):
                strangers.append(socket.create_connection(("localhost", port), timeout=1))
        step = json.loads(rows.read_text().splitlines()[-1])["step"]
        wait_for(lambda: json.loads(rows.read_text().splitlines()[-2])["step"] > step + 30, server, client)
        status, output = work.run("evaluate", str(work.recipe), *LONG, "--set", "network.patience=1")
        assert status == 1
        assert "Traceback" not in output
        for stranger in strangers:
            stranger.close()
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
        client.send_signal(signal.SIGTERM)
        assert ended(client)[0] == 128 + signal.SIGTERM
        status, output = work.run("evaluate", str(work.recipe), *LONG)
        assert status == 0, output
