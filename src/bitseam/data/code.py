"""Digests of what reads pictures, runs towers and writes prompts: what other code found or computed is not believed."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def _digest(patterns: tuple[str, ...], *packages: str) -> str:
    digest = hashlib.sha256()
    for source in sorted(path for pattern in patterns for path in _ROOT.glob(pattern)):
        digest.update(source.read_bytes())
    for package in packages:
        digest.update(f"{package}=={version(package)}\n".encode())
    return digest.hexdigest()


_PICTURES = ("data/images.py", "models/weights.py", "models/vision/*.py")
PICTURE_CODE = _digest((*_PICTURES, "data/inspection.py"), "pillow")  # file -> image, and what it is known by
TOWER_CODE = _digest(_PICTURES, "pillow", "torch", "transformers")  # file -> features
PROMPT_CODE = _digest(("text/*.py",), "tokenizers", "transformers")  # row -> tokens
