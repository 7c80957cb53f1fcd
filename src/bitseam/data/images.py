"""Image files, read whole."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from bitseam.errors import DataError


def open_image(path: Path) -> Image.Image:
    """A whole decoded image. Raises DataError that names the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image: {error}") from error
