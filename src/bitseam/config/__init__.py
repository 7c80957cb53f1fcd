"""Recipes: what a run is."""

from bitseam.config.reading import canonical, load_recipe, parse_recipe, parse_stream
from bitseam.config.recipe import (
    GRID_CODECS,
    Client,
    Data,
    Lora,
    Network,
    QuantizerName,
    Recipe,
    Seam,
    Server,
    Stream,
    Text,
    Train,
)
from bitseam.config.shipped import find_recipe, shipped_recipes

__all__ = [
    "GRID_CODECS",
    "Client",
    "Data",
    "Lora",
    "Network",
    "QuantizerName",
    "Recipe",
    "Seam",
    "Server",
    "Stream",
    "Text",
    "Train",
    "canonical",
    "find_recipe",
    "load_recipe",
    "parse_recipe",
    "parse_stream",
    "shipped_recipes",
]
