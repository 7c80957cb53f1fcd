"""Recipes: strict about keys and ranges, and every shipped one loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitseam.config import canonical, load_recipe
from bitseam.errors import ConfigError

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    assert load_recipe(path).name


def test_there_are_recipes() -> None:
    assert {"demo", "smollm2"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("seam.image_up.levls", 4, "seam.image_up.levls: unknown key"),
        ("seam.image_up.levels", 1, "seam.image_up.levels: .*greater than or equal to 2.*got 1"),
        ("seam.image_up.clip", 0.0, "seam.image_up.clip"),
        ("seam.image_up.coding", "zip", "seam.image_up.coding"),
        ("seam.image_up.groups", 5000, "seam.image_up.groups"),
        ("seam.image_down.block", "row", "seam.image_down.block"),
        ("seam.text", "pictures", "seam.text"),
        ("server.tune", "some", "server.tune"),
        ("train.steps", 0, "train.steps"),
        ("train.warmup", 1.5, "train.warmup"),
        ("client.rate", float("nan"), "client.rate"),
        ("name", "a/b", "name"),
        ("text.prompt", "no fields", "{image} and {question}"),
        ("train.steps.deep", 1, "steps is not a table"),
    ],
)
def test_wrong_keys_and_values_are_named(key: str, value: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_recipe(RECIPES[0], {key: value})
    assert str(RECIPES[0]) in str(caught.value)


def test_a_file_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        load_recipe(bad)
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot read"):
        load_recipe(tmp_path / "absent.toml")


def test_canonical_is_equal_for_equal_recipes() -> None:
    assert canonical(load_recipe(RECIPES[0])) == canonical(load_recipe(RECIPES[0]))
    assert canonical(load_recipe(RECIPES[0], {"seed": 99})) != canonical(load_recipe(RECIPES[0]))
