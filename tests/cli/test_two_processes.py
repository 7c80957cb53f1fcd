"""The commands as people run them: two processes, gRPC, mutual TLS, loopback, tiny checkpoints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import Tiny
from in_process import Command, flat
from tiny_run import write_tiny_run

from bitseam.runs.checkpoint import read_config
from bitseam.transport import make_certificates
from bitseam.transport.authority import allow_list, revoke

pytest_plugins = ["in_process"]


@dataclass
class Work:
    folder: Path
    recipe: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bitseam.cli.main", *words]
        environment = os.environ | {"BITSEAM_CACHE": str(self.folder / "cache")}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def run(self, *words: str) -> tuple[int, str]:
        return ended(self.start(*words))

    @contextmanager
    def server(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        process = self.start("serve", str(self.recipe), *words)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def steps(self, side: str) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in (self.folder / "run" / side).glob("step-*"))


@pytest.fixture
def work(tiny: Tiny, tmp_path: Path) -> Work:
    return Work(tmp_path, write_tiny_run(tmp_path, tiny))


def ended(process: subprocess.Popen[str], timeout: float = 60) -> tuple[int, str]:
    """Exit status and output, in one line."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"{process.args} still runs after {timeout} s: {process.communicate()[0]}")
    return process.returncode, flat(output)


def wait_for(condition: Callable[[], object], *processes: subprocess.Popen[str], timeout: float = 60) -> None:
    """Until the condition holds; fails with the output of a process that ends before."""
    deadline = time.monotonic() + timeout
    while not condition():
        for process in processes:
            assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_train_ask_and_merge(work: Work, bitseam: Command) -> None:
    with work.server() as server:
        status, output = work.run("train", str(work.recipe))
        assert status == 0, output
        assert work.steps("client") == work.steps("server") == [4, 6]
        newest = {side: work.folder / "run" / side / "step-000006" for side in ("client", "server")}
        assert read_config(newest["client"])[1] == read_config(newest["server"])[1]

        summary = json.loads((work.folder / "run/client/summary.json").read_text())
        framed = summary["up_bytes"] + summary["down_bytes"]
        if sys.platform == "linux":
            # TLS and HTTP/2 add to the frames, and on a run this small the handshake weighs most.
            assert framed < summary["socket_bytes"] < framed + 40_000
        assert summary["up_bytes"] < summary["fp16_up_bytes"]
        assert summary["tasks"]["cats"]["total"] == 8
        losses = [json.loads(line)["loss"] for line in (work.folder / "run/client/log.jsonl").read_text().splitlines()]
        assert len(losses) == 6

        image = str(work.folder / "0.png")
        status, output = bitseam("ask", image, "is this a cat ?", "--recipe", str(work.recipe))
        assert status == 0, output
        assert "bytes of codes" in output
        status, output = bitseam(
            "ask",
            image,
            "is this ?",
            "--recipe",
            str(work.recipe),
            "--checkpoint",
            str(work.folder / "run/client/step-000004"),
        )
        assert status == 1
        assert "model.weights" in output  # the server's half is of step 6
        server.send_signal(signal.SIGTERM)
        status, output = ended(server)
        assert status == 0, output
        assert "disagree" in output or "refused" in output

    merged = work.folder / "merged"
    status, output = bitseam("merge", str(newest["client"]), str(newest["server"]), str(merged))
    assert status == 0, output
    assert (merged / "model.safetensors").exists()

    allow = work.folder / "clients.toml"
    allow.write_text(allow_list(work.folder / "certs") + "quota = { bytes = 1_000_000 }\n")
    words = ("--checkpoint", str(newest["server"]), "--set", f"network.allow_list={allow}")
    with work.server(*words) as server:
        status, output = bitseam("evaluate", str(work.recipe))
        assert status == 0, output
        assert "cats" in output
        used = json.loads((work.folder / "run/server/quota.json").read_text())
        assert used["client"]["steps"] == 6
        assert used["client"]["bytes"] > framed
        revoke(work.folder / "certs", "client")
        status, output = bitseam("evaluate", str(work.recipe))
        assert status == 1
        assert "the server does not let the client of our certificate speak" in output
        server.send_signal(signal.SIGTERM)
        assert "refused: its certificate was revoked at" in ended(server)[1]


def finals(work: Work) -> dict[str, bytes]:
    """Every file of tensors in the last checkpoints of both sides."""
    folders = [work.folder / "run" / side / f"step-{work.steps(side)[-1]:06d}" for side in ("client", "server")]
    files = sorted(path for folder in folders for path in folder.rglob("*.safetensors"))
    return {str(path.relative_to(work.folder / "run")): path.read_bytes() for path in files}


LONG = ("--set", "train.steps=60", "--set", "train.checkpoint_every=10", "--set", "server.tune=lora")


@pytest.mark.slow
def test_both_sides_killed_and_started_again_end_with_the_same_weights(work: Work) -> None:
    dropout = (*LONG, "--set", "server.lora.dropout=0.2")
    with work.server(*dropout):
        status, output = work.run("train", str(work.recipe), *dropout)
        assert status == 0, output
    undisturbed = finals(work)
    assert any("training" in name for name in undisturbed)
    (work.folder / "run").rename(work.folder / "undisturbed")
    with work.server(*dropout) as server:
        client = work.start("train", str(work.recipe), *dropout)
        wait_for(lambda: work.steps("client")[-1:] >= [10], server, client)
        server.kill()
        server.wait()
        with work.server(*dropout) as server:  # the client waits for it, and both go back
            wait_for(lambda: work.steps("client")[-1:] >= [30], server, client)
            client.kill()
            told = ended(client)[1]
            assert "the link broke" in told
            assert "trying again in" in told
            status, output = work.run("train", str(work.recipe), *dropout)
            assert status == 0, output
            assert "going on from" in output
    assert finals(work) == undisturbed
    log = [json.loads(line) for line in (work.folder / "run/client/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(1, 61))
    assert all(later["up_bytes"] > row["up_bytes"] for row, later in pairwise(log))


def test_a_server_told_to_stop_ends_the_step_with_both_halves_written(work: Work) -> None:
    options = ("--set", "train.steps=100000", "--set", "train.checkpoint_every=50000")
    with work.server(*options) as server:
        client = work.start("train", str(work.recipe), *options)
        log = work.folder / "run/client/log.jsonl"
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3, server, client)
        server.send_signal(signal.SIGTERM)
        status, output = ended(server)
        assert status == 0, output
        step = work.steps("server")[-1]
        assert step > 0
        assert client.poll() is None  # it waits for a server
        assert work.steps("client")[-1] == step
        with work.server(*options) as server:
            wait_for(lambda: json.loads(log.read_text().splitlines()[-2])["step"] > step + 3, server, client)
            client.kill()
            output = flat(ended(client)[1])
            assert "the link broke: the server is" in output, output
            assert "going back" not in output


@pytest.mark.slow
def test_a_folder_of_another_recipe_or_of_another_run_is_refused(work: Work) -> None:
    with work.server():
        assert work.run("train", str(work.recipe))[0] == 0
    for words in (("serve",), ("train",)):
        status, output = work.run(*words, str(work.recipe), "--set", "train.steps=8", "--set", "server.rate=0.5")
        assert status == 1
        assert "train.steps was 6 and is 8" in output
        assert "server.rate was 0.0002 and is 0.5" in output
    (work.folder / "run/server").rename(work.folder / "elsewhere")
    with work.server():
        status, output = work.run("train", str(work.recipe))
        assert status == 1
        assert "begin anew with empty folders on both sides" in output


def test_codecs_that_differ_are_named_on_both_sides(work: Work) -> None:
    with work.server("--set", "streams.image.levels=8") as server:
        status, output = work.run("train", str(work.recipe))
        assert status == 1
        assert "stream.image.codec.0" in output
        assert '"levels":8' in output.replace(" ", "")
        server.send_signal(signal.SIGTERM)
        status, output = ended(server)
        assert status == 0  # a stranger's mistake does not stop the server
        assert "stream.image.codec.0" in output


def test_a_certificate_that_the_server_does_not_know(work: Work) -> None:
    make_certificates(work.folder / "others")
    with work.server() as server:
        status, output = work.run("train", str(work.recipe), "--set", f"network.certificates={work.folder}/others")
        assert status == 1
        assert "certificate" in output
        assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        status, output = ended(server)
        assert status == 0
        assert "a TLS handshake failed" in output


@pytest.mark.slow
def test_a_port_in_use(work: Work) -> None:
    with work.server() as first:
        port = int(work.recipe.read_text().partition("localhost:")[2].partition('"')[0])
        wait_for(lambda: _listening(port), first)
        status, output = work.run("serve", str(work.recipe))
        assert status == 1
        assert "in use" in output
        assert first.poll() is None


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("image", "3.png: not a readable image"),
        pytest.param("row", "rows.jsonl:2: answer is missing", marks=pytest.mark.slow),
        pytest.param("recipe", "train.stepps: unknown key", marks=pytest.mark.slow),
    ],
)
def test_bad_input_is_named_before_the_server_is_asked(work: Work, fault: str, complaint: str) -> None:
    options: list[str] = []
    if fault == "image":
        whole = (work.folder / "3.png").read_bytes()
        (work.folder / "3.png").write_bytes(whole[: len(whole) // 2])
    elif fault == "row":
        lines = (work.folder / "rows.jsonl").read_text().splitlines()
        lines[1] = json.dumps({"image": "1.png", "question": "is this ?"})
        (work.folder / "rows.jsonl").write_text("\n".join(lines))
    else:
        options = ["--set", "train.stepps=3"]
    status, output = work.run("train", str(work.recipe), *options)  # there is none
    assert status == 1
    assert complaint in output
    assert "trying again" not in output
