"""Recipes, checked as far as they can be without a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitseam import config
from bitseam.errors import ConfigError, TransportError, UsageError


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    *,
    plan: str | Path | None = None,
    apply_threads: bool = False,
) -> config.Recipe:
    """What a run is: a recipe's file, the name of one that comes with Bitseam, or tables, with dotted keys over it.

    overrides: such as {"train.steps": 10}. plan: a plan.toml of `bitseam plan`, laid over the recipe and under them.
    apply_threads: have this process use `threads` of the recipe from now on; before torch is imported is best. Raises
    ConfigError that names the file and each key that is wrong, those of streams' codecs and of addresses among them,
    and UsageError for a source of another type.

    >>> recipe = load_recipe("demo", {"train.steps": 100, "network.address": "localhost:0"})
    """
    from bitseam.transport import split_address

    if not isinstance(source, str | Path | Mapping):
        raise UsageError(
            "a recipe is a file's path, the name of one that comes with Bitseam, or tables; this is "
            f"{type(source).__name__}"
        )
    where = "the recipe" if isinstance(source, Mapping) else str(source)
    recipe = config.load_recipe(source, overrides, plan)
    try:
        split_address(recipe.network.address)
        if recipe.network.metrics:
            split_address(recipe.network.metrics, "network.metrics")
    except TransportError as error:
        raise ConfigError(f"{where}: {error}") from error
    if apply_threads and recipe.threads:
        os.environ["OMP_NUM_THREADS"] = str(recipe.threads)  # OpenMP reads it once, when torch is imported
        import torch

        torch.set_num_threads(recipe.threads)
    from bitseam.streams import End, build_streams

    try:
        build_streams(End, recipe.streams, recipe.seam.width)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return recipe


def as_recipe(recipe: config.Recipe | str | Path | Mapping[str, Any]) -> config.Recipe:
    """The recipe itself, or what `load_recipe` makes of it."""
    return recipe if isinstance(recipe, config.Recipe) else load_recipe(recipe)


def locate(name: str) -> str:
    """A checkpoint's name in a recipe -> the folder of an asset of that name, or the name itself."""
    from bitseam.data.assets import ENTRIES, path_of

    return str(path_of(name)) if name in ENTRIES else name
