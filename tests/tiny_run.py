"""A folder with all that a tiny run of two processes needs: recipe, certificates, rows, images."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
from conftest import Tiny
from PIL import Image

from bitseam.transport import make_certificates

RECIPE = """
name = "tiny"
device = "cpu"
threads = 1
out = "{folder}/run"
[client]
checkpoint = "{tiny.vision}"
image_size = 56
merge = 2
[server]
checkpoint = "{tiny.language}"
tune = "full"
[seam]
width = 32
[text]
tokenizer = "{tiny.tokenizer}"
prompt = "what {{image}} {{question}}"
[data]
train = "{folder}/rows.jsonl"
test = "{folder}/rows.jsonl"
[train]
steps = 6
batch = 4
checkpoint_every = 2
[network]
address = "localhost:{port}"
certificates = "{folder}/certs"
"""


def write_tiny_run(folder: Path, tiny: Tiny) -> Path:
    """Returns the recipe, FOLDER/tiny.toml; its server listens on a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    make_certificates(folder / "certs")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        row = {"image": f"{i}.png", "question": "is this a cat ?", "answer": ("yes", "no")[i % 2], "task": "cats"}
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(folder=folder, tiny=tiny, port=port))
    return recipe
