"""What is told of crops before a run, and that a run with them counts the tokens of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Tiny
from pairs import pair, train
from test_check_command import check
from tiny_run import write_tiny_run

from bitseam.api.recipes import locate
from bitseam.checks.client import ready_client
from bitseam.config import load_recipe
from bitseam.data.batches import Batches
from bitseam.data.features import StoredFeatures
from bitseam.errors import ConfigError, RefusedError

pytestmark = pytest.mark.usefixtures("cache")


def test_tokens_of_all_crops_count(tiny: Tiny, tmp_path: Path) -> None:
    recipe = write_tiny_run(tmp_path, tiny)
    told = check(recipe, "--side", "client", "--set", "client.crops=3")
    assert told.exit_code == 0, told.output
    assert "36 tokens an image" in told.output
    refused = check(recipe, "--side", "client", "--set", "client.crops=3", "--set", "seam.max_tokens=35")
    assert refused.exit_code == 1
    assert "an image has 36 tokens, and seam.max_tokens is 35" in refused.output


def test_images_that_are_too_small_are_told(tiny: Tiny, tmp_path: Path) -> None:
    told = check(write_tiny_run(tmp_path, tiny), "--side", "client", "--set", "client.crops=41")
    assert told.exit_code == 1
    assert "40 x 40 pixels cannot be cut into 41 x 41 crops (client.crops)" in told.output


def cut(recipe: Path, crops: int) -> Path:
    """The recipe with crops, without certificates."""
    text = recipe.read_text().replace("merge = 2", f"merge = 2\ncrops = {crops}")
    recipe.write_text(text.replace(f'"{recipe.parent}/certs"', '""'))
    return recipe


def test_a_run_with_crops(tiny: Tiny, tmp_path: Path) -> None:
    recipe = load_recipe(cut(write_tiny_run(tmp_path, tiny), 2))
    side = ready_client(recipe, locate, "train")
    with pair(recipe) as split:
        vision = split.client.model.vision
        features = StoredFeatures(vision, side.rows.contents, tmp_path / "features")
        batches = Batches(side.rows.train, features, side.prompter, recipe.train.batch, recipe.seed)
        saved = train(split.client, recipe, batches)
        image = split.client.ledger.entries["up", "Forward", "image (uniform)"]
        # 6 steps of 4 images of 16 tokens of 32 channels, 2 bits each
        assert image.bytes == 6 * 4 * 16 * 32 // 4
    whole = replace(recipe, client=replace(recipe.client, crops=1))
    with pytest.raises(ConfigError, match=r"client\.crops was 2 and is 1"):
        ready_client(whole, locate, "train")
    with pytest.raises(ConfigError, match=r"client\.crops is 1, but .*step-000006 has 2"):
        ready_client(replace(whole, out=str(tmp_path / "other")), locate, "ask", saved)


def test_a_server_refuses_more_tokens_than_the_recipe_allows(tiny: Tiny, tmp_path: Path) -> None:
    """Whatever the client's own checks say."""
    path = cut(write_tiny_run(tmp_path, tiny), 2)
    path.write_text(path.read_text().replace("[seam]", "[seam]\nmax_tokens = 15"))
    with (
        pytest.raises(RefusedError, match=r"images are 16 tokens long; seam\.max_tokens is 15"),
        pair(load_recipe(path)),
    ):
        pass
