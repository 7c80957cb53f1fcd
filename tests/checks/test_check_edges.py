"""`bitseam check` where several kinds of things are wrong together, and what it leaves of a folder that others use."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest
from conftest import Tiny
from test_check_command import check, spoil
from tiny_run import write_tiny_run

from bitseam import Server
from bitseam.config import load_recipe
from bitseam.errors import ConfigError, TransportError
from bitseam.runs.claim import claimed

pytestmark = pytest.mark.usefixtures("cache")

pytest_plugins = ["disks"]


def test_a_tokenizer_that_is_wrong_hides_no_row_and_no_image(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    told = spoil(tmp_path)
    (tmp_path / "file").touch()
    options = ("text.tokenizer=/nowhere", f"out={tmp_path}/file/run", "client.checkpoint=/absent")
    result = check(recipe, *(word for option in options for word in ("--set", option)))
    assert result.exit_code == 1
    for text in (*told, "text.tokenizer '/nowhere'", f"{tmp_path}/file is no folder", "client.checkpoint '/absent'"):
        assert text in result.output, result.output
    assert "Traceback" not in result.output


def test_a_check_leaves_nothing_in_out_and_takes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    assert check(recipe).exit_code == 0
    assert not (tmp_path / "run").exists()
    out = load_recipe(recipe).folder
    with claimed(out, "client"), claimed(out, "server"):
        before = (out / "server/.lock").read_bytes()
        result = check(recipe)
        assert result.exit_code == 0, result.output
        assert f"in use now: {out}/client: this process has a server or client in this folder already" in result.output
    assert check(recipe).exit_code == 0
    assert (out / "server/.lock").read_bytes() == before


def test_a_check_under_way_keeps_nobody_from_starting(tmp_path: Path) -> None:
    import fcntl

    with claimed(tmp_path, "server"):
        pass
    with (tmp_path / "server/.lock").open() as checking:
        fcntl.flock(checking, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(checking, fcntl.LOCK_UN)).start()
        with claimed(tmp_path, "server"):
            time.sleep(0.1)


def test_a_read_only_disk_is_told_by_a_check(tiny: Tiny, tmp_path: Path, read_only: Path) -> None:
    result = check(write_tiny_run(tmp_path, tiny), "--set", f"out={read_only}/run")
    assert result.exit_code == 1
    assert result.output.count(f"{read_only} is not writable; name another folder in `out`") == 2


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (("network.metrics=localhost:{taken}",), "network.metrics 127.0.0.1:{taken}: the port is in use"),
        (("network.address=203.0.113.7:50051",), "203.0.113.7:50051: cannot listen there: Cannot assign"),
        (("network.address=0.0.0.0:0", "network.certificates="), "0.0.0.0: without TLS, anyone on the way"),
    ],
)
def test_where_a_server_cannot_listen_is_told_before_its_model_is_loaded(
    tiny: Tiny, tmp_path: Path, settings: tuple[str, ...], complaint: str
) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        filled = [setting.format(taken=taken) for setting in settings]
        result = check(recipe, "--side", "server", *(word for one in filled for word in ("--set", one)))
        assert result.exit_code == 1
        assert complaint.format(taken=taken) in result.output
        loaded = load_recipe(recipe, dict(one.split("=") for one in filled))
        with pytest.raises(TransportError, match=r"listen|in use|without TLS"):
            Server(loaded).load()


def test_rows_whose_paths_steer_the_terminal_take_one_line_each(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    plain = {"question": "is this a cat ?", "answer": "yes"}
    lines += [json.dumps({"image": name, **plain}) for name in ("a\nerror: b.png", "[/x]\x1b[2J{}.png", "\u202egnp")]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    output = check(recipe, "--side", "client").output
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert not any(line.startswith("error: b") for line in output.splitlines()), output
    assert "[/x]" in output


def test_an_option_of_check_that_is_neither_side(tiny: Tiny, tmp_path: Path) -> None:
    result = check(write_tiny_run(tmp_path, tiny), "--side", "both")
    assert isinstance(result.exception, ConfigError)
