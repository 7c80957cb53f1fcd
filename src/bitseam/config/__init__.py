"""Recipes: what a run is."""

from bitseam.config.reading import canonical, load_recipe, parse_recipe
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
    "load_recipe",
    "parse_recipe",
]
