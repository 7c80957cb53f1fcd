"""`bitseam check` lists at once all that is wrong before a run, and `serve` and `train` begin with the same checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Tiny
from tiny_run import write_tiny_run
from typer.testing import CliRunner, Result

from bitseam.api.recipes import locate
from bitseam.checks.client import ready_client
from bitseam.checks.server import ready_server
from bitseam.cli.main import app
from bitseam.config import load_recipe
from bitseam.errors import AddressInUseError, CheckError
from bitseam.transport import Listener

pytestmark = pytest.mark.usefixtures("cache")


def check(recipe: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["check", str(recipe), *options], env={"COLUMNS": "400", "NO_COLOR": "1"})


def spoil(folder: Path) -> list[str]:
    """Put five things wrong in a tiny run, none of which hides another; returns what must be told of each."""
    lines = (folder / "rows.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"image": "2.png", "question": "is this a cat ?"})
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:100])
    (folder / "rows.jsonl").write_text("\n".join(lines))
    (folder / "certs" / "client.pem").unlink()
    recipe = folder / "tiny.toml"
    recipe.write_text(recipe.read_text().replace("width = 32", "width = 48").replace("steps = 6", "steps = 8"))
    return [
        f"{folder}/rows.jsonl:3: answer",
        f"{folder}/rows.jsonl:6: ",
        f"{folder}/certs/client.pem",
        "seam.width is 48, but the language model's embeddings have 32",
    ]


def test_nothing_wrong(tiny: Tiny, tmp_path: Path) -> None:
    result = check(write_tiny_run(tmp_path, tiny))
    assert result.exit_code == 0, result.output
    assert "8 rows to train on, 8 to test, 8 images" in result.output
    assert "language model proven in" in result.output
    assert "no server runs there now" in result.output
    assert f"{tmp_path}/certs/client.pem until 20" in result.output
    assert "are free" in result.output
    assert result.output.strip().endswith("nothing is wrong")


def test_all_that_is_wrong_is_told_at_once(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    told = spoil(tmp_path)
    result = check(recipe)
    assert result.exit_code == 1
    for text in told:
        assert text in result.output
    assert "Traceback" not in result.output


def test_a_side_alone(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    spoil(tmp_path)
    result = check(recipe, "--side", "server")
    assert result.exit_code == 1
    assert "embeddings have 32" in result.output
    assert "rows.jsonl" not in result.output
    assert "client" not in result.output.splitlines()[0]


def test_a_server_that_runs_is_reached_and_is_no_fault(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    loaded = load_recipe(recipe)
    side = ready_server(loaded, locate)
    listener = Listener(loaded.network.address, lambda channel: None, side.tls)
    listener.start()
    try:
        result = check(recipe)
        assert result.exit_code == 0, result.output
        assert "answers" in result.output
        assert "in use" in result.output
        with pytest.raises(AddressInUseError):  # but a second one is refused before its model is loaded
            ready_server(loaded, locate)
    finally:
        listener.stop()


def test_train_and_serve_make_the_same_checks(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    told = spoil(tmp_path)
    with pytest.raises(CheckError) as wrong:
        ready_client(load_recipe(recipe), locate, "train")
    for text in told[:3]:
        assert text in str(wrong.value)


def test_the_second_start_looks_at_no_image_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    ready_client(load_recipe(recipe), locate, "train")
    opened: list[Path] = []
    monkeypatch.setattr("bitseam.data.inspection.open_crops", lambda path, crops: opened.append(path))
    ready_client(load_recipe(recipe), locate, "train")
    assert opened == []


def test_a_fault_of_the_certificates_is_told_once(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    spoil(tmp_path)
    lines = [line for line in check(recipe, "--side", "client").output.splitlines() if "client.pem" in line]
    assert len(lines) == 1
    assert lines[0].split()[:2] == ["wrong", "certificates:"]
