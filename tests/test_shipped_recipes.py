"""Recipes that come with Bitseam are found by name, wherever a recipe is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitseam.cli.main import app
from bitseam.config import find_recipe, load_recipe, shipped_recipes
from bitseam.errors import ConfigError


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_they_are_found_by_name() -> None:
    assert {"demo", "smollm2"} <= set(shipped_recipes())
    for name, path in shipped_recipes().items():
        assert load_recipe(name) == load_recipe(path)
        assert load_recipe(name, {"seed": 5}).seed == 5


def test_a_file_of_that_path_wins_and_a_folder_does_not() -> None:
    Path("demo").mkdir()
    assert find_recipe("demo") == shipped_recipes()["demo"]
    Path("demo").rmdir()
    Path("demo").write_text(shipped_recipes()["smollm2"].read_text())
    assert load_recipe("demo").name == "smollm2"


@pytest.mark.parametrize("name", ["dmeo", "demo.toml", "recipes/demo.toml"])
def test_an_unknown_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        load_recipe(name)
    assert str(wrong.value).startswith(f"{name}: there is no such file")
    assert ", ".join(sorted(shipped_recipes())) in str(wrong.value)
    assert "bitseam new" in str(wrong.value)


@pytest.mark.parametrize("name", ["", ".", "x" * 5000, "a\0b"])
def test_what_is_no_file_is_an_error_of_ours(name: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(name)


@pytest.mark.parametrize("words", [["check"], ["serve"], ["train"], ["evaluate"], ["status"]])
def test_commands_take_a_name(words: list[str]) -> None:
    """The override is told as wrong in the recipe of that name, so that nothing is begun."""
    error = CliRunner().invoke(app, [*words, "smollm2", "--set", "train.steps=0"]).exception
    assert isinstance(error, ConfigError)
    assert str(error).startswith("smollm2: train.steps: ")


def test_questions_are_asked_of_the_demo_unless_told() -> None:
    error = CliRunner().invoke(app, ["ask", "photo.png", "What?", "--set", "train.steps=0"]).exception
    assert str(error).startswith("demo: train.steps: ")
