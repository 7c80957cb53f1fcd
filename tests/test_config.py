"""Recipes: strict about keys and ranges, and every shipped one loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitseam.config import canonical, load_recipe, parse_recipe
from bitseam.errors import ConfigError
from bitseam.streams import Receiver, Sender, build_streams

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path) -> None:
    assert load_recipe(path).name


def test_there_are_recipes() -> None:
    assert {"demo", "smollm2"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("streams.image.levls", 4, "streams.image.levls: unknown key"),
        ("streams.image.levels", 1, "streams.image.levels: .*greater than or equal to 2.*got 1"),
        ("streams.image.clip", 0.0, "streams.image.clip"),
        ("streams.image.quantizer", "fp16", "streams.image.quantizer: .*got 'fp16'"),
        ("streams.image.steps", [1.0], "streams.image: .*steps are for the quantizer step-fsq, not rd-fsq"),
        ("streams.image", {"quantizer": "step-fsq", "steps": [-1.0]}, "streams.image.steps.0"),
        ("streams.image", {"quantizer": "step-fsq", "steps": [1.0, 2.0]}, "image.steps: 2 steps for .* channels"),
        ("streams.image.rates", [1.0, 2.0], "streams.image: .*rates are for the quantizer rate-fsq, not rd-fsq"),
        ("streams.image.rate", 1, "streams.image: .*rate 1: there are 1 rates, from 0 on"),
        ("streams.image", {"quantizer": "rate-fsq", "levels": 5}, "rate-fsq needs codec = 'entropy-uniform'"),
        ("streams.image", {"quantizer": "rate-fsq", "codec": "entropy-uniform"}, "an odd number of levels"),
        ("streams.image.codec", "fp16", "streams.image: .*codec fp16 takes features as they are"),
        ("streams.image.codec", "zip", "streams.image: .*codec zip takes features as they are"),
        ("streams.image.codec", 4, "streams.image.codec: .*got 4"),
        ("streams.image.codec.levels", 4, "streams.image: .*codec: levels are the quantizer's"),
        ("streams.image.codec", {"clip": 1.0, "levels": 4}, "streams.image: .*codec: clip, levels are the quantizer's"),
        ("streams.image.codec.tables", [], "streams.image: .*codec: tables are the quantizer's"),
        ("streams.image.quantizer", "none", "streams.image: .*codec uniform writes a quantizer's levels"),
        ("streams.image", {"quantizer": "none", "codec": "entropy-uniform"}, "codec entropy-uniform writes"),
        ("streams.text", {"codec": {"id": "entropy-uniform", "contexts": 3}}, "streams.text.codec.contexts: only"),
        ("streams.text.levls", 4, "streams.text.levls: unknown key"),
        ("streams.hidden", {}, "streams: .*hidden: nothing of that name crosses; streams are image, text"),
        ("streams", ["image"], "streams: "),
        ("streams.image", "rd-fsq", "streams.image: "),
        ("seam.image_up", {"levels": 4}, "seam.image_up: unknown key"),
        ("seam.text", "codes", "seam.text: unknown key"),
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


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"codec": {"id": "entropy-uniform", "groups": 5000}}, "streams.image.codec: .*groups"),
        ({"codec": {"id": "entropy-uniform", "contexts": 17}}, "streams.image.codec: .*contexts"),
        ({"codec": {"id": "entropy-uniform", "contexts": 4}}, "streams.image.codec: .*contexts"),
        ({"codec": {"id": "entropy-uniform", "contexts": 5, "groups": 820}}, "streams.image.codec: .*groups"),
        ({"codec": {"id": "uniform", "contexts": 3}}, "streams.image.codec: .*contexts"),
        ({"quantizer": "none", "codec": "zip"}, "streams.image.codec: .*zip"),
        ({"quantizer": "none", "codec": {"id": "nf", "bits": 99}}, "streams.image.codec: .*bits"),
        ({"gradient": "zip"}, "streams.image.gradient: .*zip"),
        ({"gradient": {"block": "row"}}, "streams.image.gradient: .*block"),
        ({"gradient": {"id": "entropy-stochastic", "step": 0.0}}, "streams.image.gradient: .*step"),
        ({"gradient": {"id": "entropy-stochastic", "block": 4}}, "streams.image.gradient: .*block"),
    ],
)
def test_codecs_and_options_that_are_none_are_named_when_streams_are_built(
    changes: dict[str, object], complaint: str
) -> None:
    recipe = load_recipe(RECIPES[0], {"streams.image": changes})
    for end in (Sender, Receiver):
        with pytest.raises(ConfigError, match=complaint):
            build_streams(end, recipe.streams, recipe.seam.width)


def test_a_codec_is_an_id_or_a_table_and_has_a_default() -> None:
    plain = load_recipe(RECIPES[0], {"streams": {}}).streams["image"]
    assert (plain.codec, plain.gradient) == ({"id": "uniform"}, {"id": "stochastic"})
    told = load_recipe(RECIPES[0], {"streams.image": {"codec": "entropy-uniform", "gradient": {"levels": 8}}})
    assert told.streams["image"].codec == {"id": "entropy-uniform"}
    assert told.streams["image"].gradient == {"id": "stochastic", "levels": 8}


def test_images_always_cross_and_come_first() -> None:
    assert list(load_recipe(RECIPES[0]).streams) == ["image"]
    both = load_recipe(RECIPES[0], {"streams": {"text": {}, "image": {"levels": 8}}})
    assert list(both.streams) == ["image", "text"]
    alone = load_recipe(RECIPES[0], {"streams": {"text": {"levels": 8}}}).streams
    assert (list(alone), alone["image"].levels, alone["text"].levels) == (["image", "text"], 4, 8)


def test_a_file_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        load_recipe(bad)
    with pytest.raises(ConfigError, match=r"absent\.toml: there is no such file"):
        load_recipe(tmp_path / "absent.toml")


def test_canonical_is_equal_for_equal_recipes() -> None:
    assert canonical(load_recipe(RECIPES[0])) == canonical(load_recipe(RECIPES[0]))
    assert canonical(load_recipe(RECIPES[0], {"seed": 99})) != canonical(load_recipe(RECIPES[0]))


def test_steps_survive_a_checkpoints_json() -> None:
    up = {"quantizer": "step-fsq", "channels": 3, "levels": 7, "steps": [0.0, 0.5, 1.25]}
    recipe = load_recipe(RECIPES[0], {"streams.image": up})
    assert recipe.streams["image"].steps == (0.0, 0.5, 1.25)
    assert parse_recipe(json.loads(canonical(recipe)), "copy") == recipe


def test_a_plan_is_laid_over_the_recipe_key_by_key(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'seed = 5\n[streams.image]\nquantizer = "step-fsq"\nlevels = 9\n[streams.text.gradient]\nlevels = 7\n'
    )
    plain, planned = load_recipe(RECIPES[0]), load_recipe(RECIPES[0], {"seed": 6}, plan)
    assert planned.seed == 6  # what is said by hand outweighs the plan
    assert (planned.streams["image"].quantizer, planned.streams["image"].levels) == ("step-fsq", 9)
    assert planned.streams["image"].clip == plain.streams["image"].clip
    assert planned.streams["text"].gradient == {"id": "stochastic", "levels": 7}
    assert planned.train == plain.train
    plan.write_text("[streams.image]\nlevls = 9\n")
    with pytest.raises(ConfigError, match=r"plan\.toml: streams.image.levls: unknown key"):
        load_recipe(RECIPES[0], plan=plan)


NESTED = 100_000
HOSTILE = {
    "deep lists": f"a = {'[' * NESTED}{']' * NESTED}",
    "deep tables": f"a = {'{a=' * NESTED}1{'}' * NESTED}",
    "deep keys": "a" + ".a" * NESTED + " = 1",
    "many digits": "seed = " + "9" * 5000,
    "a large hexadecimal number": "seed = 0x" + "f" * 5000,
    "a large count": "[train]\nsteps = 99999999999999999999999999",
    "a nul byte in a path": 'out = "a\\u0000b"',
    "a name that leads away": 'name = ".."',
    "control characters in a key": '"a\\u001b[31m\\nb" = 1',
    "control characters in a value": 'device = "a\\u001b[31m\\nb"',
    "a long value": f'device = "{"x" * 100_000}"',
    "many faults": "".join(f"k{i} = 1\n" for i in range(5000)),
    "not a number": "[client]\ncheckpoint = 'x'\nrate = nan",
    "a date": "seed = 1979-05-27",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_recipes_are_refused_in_one_short_line(tmp_path: Path, case: str) -> None:
    (tmp_path / "bad.toml").write_text(HOSTILE[case])
    with pytest.raises(ConfigError, match=r"bad.toml: ") as caught:
        load_recipe(tmp_path / "bad.toml")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 4000
