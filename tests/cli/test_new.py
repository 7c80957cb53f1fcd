"""`bitseam new`: the recipe that it writes is one that `bitseam check` accepts, and tells the truth about defaults."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from conftest import WIDTH, Tiny
from in_process import Command
from tiny_run import write_tiny_run
from typer.testing import CliRunner

from bitseam.cli.machine import free_port
from bitseam.cli.main import app
from bitseam.config import Recipe, Stream, load_recipe, parse_recipe

pytest_plugins = ["in_process"]

UNSHOWN = {"steps", "distortion_weight", "rates", "rate"}  # of one quantizer each; docs/codecs.md has them
AT_DEFAULT = re.compile(r"^#(?=\w+ = |\[)", re.MULTILINE)


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: rows and images, and no recipe."""
    write_tiny_run(tmp_path, tiny).unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITSEAM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def new(*words: str) -> str:
    result = CliRunner().invoke(app, ["new", *words], env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kind", ["tower and language model", "LLaVA"])
def test_check_accepts_it(kind: str, tiny: Tiny, folder: Path) -> None:
    models = ["--vision", tiny.llava] if kind == "LLaVA" else ["--vision", tiny.vision, "--language", tiny.language]
    new("mine", *models, "--train", "rows.jsonl", "--test", "rows.jsonl")
    shown = {"COLUMNS": "400", "NO_COLOR": "1"}
    address = f"network.address=localhost:{free_port()}"
    result = CliRunner().invoke(app, ["check", "mine.toml", "--set", address], env=shown)
    assert result.exit_code == 0, result.output
    assert "8 rows to train on, 8 to test, 8 images" in result.output
    assert "language model proven" in result.output
    recipe = load_recipe("mine.toml")
    assert (recipe.seam.width, recipe.train.batch) == (WIDTH, 8)
    assert recipe.server.checkpoint == (tiny.llava if kind == "LLaVA" else tiny.language)
    assert ("merge" in tomllib.loads(Path("mine.toml").read_text())["client"]) == (kind != "LLaVA")


def test_without_models_it_takes_those_of_a_recipe_that_comes_with_bitseam(folder: Path) -> None:
    said = new("mine", "--train", "rows.jsonl")
    recipe, usual = load_recipe("mine.toml"), load_recipe("smollm2")
    assert recipe.client.checkpoint == usual.client.checkpoint
    assert recipe.server.checkpoint == recipe.text.tokenizer == usual.server.checkpoint
    assert recipe.seam.width == usual.seam.width
    assert "bitseam assets dinov2-small smollm2-135m" in said


def test_what_it_says_to_do_next_are_commands(folder: Path, tiny: Tiny) -> None:
    said = new("mine", "--vision", tiny.vision, "--language", tiny.language)
    commands = re.findall(r"bitseam (\w+) (\S+)", said)
    assert commands == [("certs", "certs"), *((word, "mine.toml") for word in ("check", "serve", "train"))]
    assert {word for word, _ in commands} <= {command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]


def test_every_key_is_there(folder: Path) -> None:
    new("mine")
    shown = tomllib.loads(AT_DEFAULT.sub("", Path("mine.toml").read_text()))

    def compare(kind: Any, table: dict[str, Any], where: str) -> None:
        due = {field.name for field in fields(kind)} - (UNSHOWN if kind is Stream else set())
        assert set(table) == due, where
        for name, hint in get_type_hints(kind).items():
            if is_dataclass(hint):
                compare(hint, table[name], f"{where}.{name}")

    compare(Recipe, {**shown, "streams": {}}, "recipe")
    compare(Stream, shown["streams"]["image"], "streams.image")
    assert shown["streams"]["text"] == {}


def test_lines_at_their_default_are_at_their_default(folder: Path) -> None:
    new("mine")
    text = Path("mine.toml").read_text().replace("#[streams.text]\n", "")
    told, plain = (parse_recipe(tomllib.loads(one), "test") for one in (AT_DEFAULT.sub("", text), text))
    # Where leaving a key out has a meaning of its own, the line shows what that comes to.
    assert told.out == str(plain.folder)
    assert told.client.connector_hidden == plain.seam.width
    told = replace(
        told,
        out=plain.out,
        client=replace(told.client, connector_hidden=None),
        text=replace(told.text, max_answer_tokens=None),
    )
    assert told == plain


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["there"], "there.toml is there already, and stays as it is"),
        (["there.toml"], "there.toml is there already, and stays as it is"),
        (["demo"], "demo is a recipe that comes with Bitseam"),
        (["a/b"], "a/b.toml: name: "),
        (["two words"], "two words.toml: name: "),
        (["mine", "--language", "absent-folder/x/y"], "server.checkpoint 'absent-folder/x/y' cannot be loaded"),
        (["mine", "--vision", "language"], "client.checkpoint 'language': no vision tower that Bitseam can cut"),
        (["mine", "--language", "vision"], "server.checkpoint 'vision': it is a dinov2"),
        (["mine", "--train", "\udcff.jsonl"], "which is not Unicode"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_written(
    words: list[str], told: str, tiny: Tiny, folder: Path, bitseam: Command
) -> None:
    (folder / "there.toml").write_text("kept")
    (folder / "language").symlink_to(tiny.language)
    (folder / "vision").symlink_to(tiny.vision)
    status, said = bitseam("new", *words)
    assert (status, told in said) == (1, True), said
    assert "Traceback" not in said
    assert {path.name: path.read_text() for path in folder.glob("*.toml")} == {"there.toml": "kept"}


def test_names_are_quoted(folder: Path) -> None:
    name = 'a "b" \\ c\n[train]\tü \x7f # {{ name }}.jsonl'
    new("mine", "--train", name, "--test", name)
    assert load_recipe("mine.toml").data == replace(load_recipe("smollm2").data, train=name, test=name)
