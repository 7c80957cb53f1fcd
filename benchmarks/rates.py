"""One trained model at several rates: levels chosen when it is asked, against JPEG files of the same pictures.

    python benchmarks/rates.py [--demo runs/demo] [--json FILE]

After `make demo`: asks its coded model the test questions with each number of levels and the clip that is best for a
Gaussian (Max 1960), nothing trained anew. Bytes an image are of the codes alone, as sent; the JPEG's are of the model's
own input (112 x 112) at quality 90, and of the picture at the size of its file.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from processes import RECIPE
from traffic import told

from bitseam import config
from bitseam.api.recipes import locate
from bitseam.cli.machine import circumstances
from bitseam.data.assets import cache_folder
from bitseam.data.features import StoredFeatures
from bitseam.data.images import open_image
from bitseam.data.inspection import contents_of
from bitseam.data.memory import Memory
from bitseam.data.rows import Row, read_rows
from bitseam.evals import evaluate
from bitseam.models.vision.half import VisionHalf
from bitseam.runs.checkpoint import load_client, newest
from bitseam.sessions.client import ClientSession
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.text.prompts import Prompter
from bitseam.transport import memory_pair

RATES = {16: 2.51, 8: 2.05, 4: 1.5, 3: 1.22, 2: 0.8}  # levels: clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = config.load_recipe(RECIPE, {"threads": os.cpu_count()})
    torch.set_num_threads(recipe.threads)
    tests = read_rows(options.demo / "questions" / "test.jsonl")
    images = [image for image, _ in groupby(row.image for row in tests)]
    figures = circumstances(recipe.threads) | {
        "images": len(images),
        "jpeg90_input_bytes": jpeg_bytes(images, (recipe.client.image_size, recipe.client.image_size)),
        "jpeg90_file_bytes": jpeg_bytes(images, None),
        "rows": [at(levels, recipe, options.demo / "coded", tests, len(images)) for levels in RATES],
    }
    print(
        f"JPEG 90: {figures['jpeg90_input_bytes']:,.0f} bytes an image of the model's input, "
        f"{figures['jpeg90_file_bytes']:,.0f} of the picture as filed"
    )
    for row in figures["rows"]:
        shares = [f"{task} {told(score['correct'], score['total'])}" for task, score in row["tasks"].items()]
        print(f"{row['levels']:3} levels {row['bytes_per_image']:7.0f} bytes an image  {'  '.join(shares)}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def at(levels: int, recipe: config.Recipe, run: Path, tests: Sequence[Row], images: int) -> dict:
    """Scores of the trained halves in `run` with so many levels; images: that the tests are about."""
    size, tasks = ask(with_image(recipe, levels=levels, clip=RATES[levels]), run, tests)
    return {"levels": levels, "clip": RATES[levels], "bytes_per_image": size / images, "tasks": tasks}


def with_image(recipe: config.Recipe, **changes: Any) -> config.Recipe:
    """The same with other settings of what images cross as."""
    return replace(recipe, streams=recipe.streams | {"image": replace(recipe.streams["image"], **changes)})


def stored_features(half: VisionHalf, rows: Sequence[Row]) -> StoredFeatures:
    """Of the rows' images, kept in the cache."""
    contents = contents_of((row.image for row in rows), Memory(cache_folder() / "checked.sqlite"), half.crops)
    return StoredFeatures(half, contents, cache_folder() / "features")


def ask(recipe: config.Recipe, run: Path, tests: Sequence[Row]) -> tuple[int, dict]:
    """Put the test questions to the trained halves in `run`: bytes of image codes in all, and scores by task."""
    party = ServerParty(recipe, locate, newest(run, "server"))
    model, _, identity = load_client(newest(run, "client"), locate, recipe.streams)
    prompter = Prompter(recipe.text, locate)
    ours, theirs = memory_pair()
    server = threading.Thread(target=ServerSession(party, theirs).run)
    server.start()
    with ClientSession(model, lambda: ours, prompter.vocabulary) as session:
        session.open(terms(recipe, session.streams, prompter, str(identity)), training=False)
        result = evaluate(session, prompter, tests, stored_features(model.vision, tests).of)
    server.join()
    tasks = {task: vars(score) for task, score in result.scores.items()}
    return session.ledger.coded_bytes("Ask", "image"), tasks


def jpeg_bytes(paths: Sequence[Path], size: tuple[int, int] | None) -> float:
    """Mean length of JPEG files of quality 90."""
    total = 0
    for path in paths:
        image = open_image(path).convert("RGB")
        buffer = io.BytesIO()
        (image.resize(size, Image.Resampling.BICUBIC) if size else image).save(buffer, "JPEG", quality=90)
        total += buffer.tell()
    return total / len(paths)


if __name__ == "__main__":
    main()
