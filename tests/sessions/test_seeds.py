"""Any seed that a recipe takes works, wherever it is used, and small ones give what they have always given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from breaking import Server, recipe_in, trained
from conftest import Tiny, make_recipe
from typer.testing import CliRunner

from bitseam.cli.main import app
from bitseam.errors import ConfigError
from bitseam.sessions.server import seed_of

LARGEST = 2**63 - 1
SEEDS = [0, 1, 2**23, 2**24 - 1, 2**24, 20240101, 2**31, 2**32, 2**53 + 1, LARGEST]


@pytest.mark.parametrize("seed", SEEDS)
def test_O5_any_seed_works_in_each_place(tiny: Tiny, seed: int) -> None:
    assert make_recipe(tiny, seed=seed).seed == seed
    torch.manual_seed(seed)
    np.random.default_rng([seed, 7]).permutation(3)
    np.random.default_rng(seed)
    for step, micro in ((1, 0), (2**31, 2**16), (2**40, 3)):
        torch.Generator().manual_seed(seed_of(seed, step, micro))


def test_O5_each_micro_batch_has_a_seed_of_its_own() -> None:
    places = [(seed, step, micro) for seed in SEEDS for step in range(1, 30) for micro in range(4)]
    assert len({seed_of(*place) for place in places}) == len(places)


def test_O5_small_seeds_give_what_they_have_given() -> None:
    assert seed_of(0, 12, 3) == (12 << 16) + 3
    assert seed_of(5, 12, 3) == (5 << 40) + (12 << 16) + 3


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 0.5, "x", float("nan")])
def test_O5_others_are_refused_by_name(tiny: Tiny, seed: object) -> None:
    with pytest.raises(ConfigError, match=r"seed: .*\(got "):
        make_recipe(tiny, seed=seed)


def test_O5_questions_take_no_negative_seed(tmp_path: object) -> None:
    result = CliRunner().invoke(app, ["questions", str(tmp_path), "--seed", "-1"])
    assert result.exit_code == 2
    assert "--seed" in result.output


@pytest.mark.parametrize("seed", [20240101, LARGEST])
def test_O5_a_pair_trains_with_such_a_seed(tiny: Tiny, tmp_path: Path, seed: int) -> None:
    server = Server(recipe_in(tiny, tmp_path, seed=seed))
    trained(server)
    assert server.failures == []
    assert server.party.step == server.recipe.train.steps
