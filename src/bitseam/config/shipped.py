"""Recipes that come with Bitseam, and are found by their names."""

from __future__ import annotations

import os
from pathlib import Path

from bitseam.errors import ConfigError, printable

_FOLDER = Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of each recipe that comes with Bitseam, in the order of their names."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def find_recipe(named: str | Path) -> Path:
    """The file that a recipe's path or name stands for: a file of that path, or else the shipped recipe of that name.

    Raises ConfigError, with the names of the shipped recipes, where there is neither.
    """
    path, shipped = Path(named), shipped_recipes()
    if str(named) in shipped and not (os.path.exists(path) and not os.path.isdir(path)):
        return shipped[str(named)]
    try:
        path.stat()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{printable(str(named))}: there is no such file, and no recipe of that name comes with Bitseam; those "
            f"that do are {', '.join(shipped)}. `bitseam new NAME` writes one for your own model and data"
        ) from error
    except (OSError, ValueError):
        pass  # whoever reads it is told why it cannot be read
    return path
