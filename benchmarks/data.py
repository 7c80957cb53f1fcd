"""The data path at the size of LLaVA's mix, and what a step waits for images that are decoded as it goes.

    python benchmarks/data.py [--rows 665000] [--images 300000] [--steps 40] [--json FILE]

Rows: files are made in a temporary folder, small pictures all of one content. `first start` reads every row, decodes
every picture and measures every prompt; `start` is every later one. A micro-batch is timed before features, prompts
included, at three places of an epoch and at the beginning of the next; the first call of a process is left out.

Waiting: a run of the demo's shape (DINOv2 ViT-S/14 and a Llama of 15M parameters, of random weights, each side a
process of its own on this machine) with pictures of 640 x 480 as JPEG, whose features are computed in each step. `wait`
is what the step spends to get pixels: decoding and resizing, or waiting for a worker that does. The tower itself is
computation and is not in it. The first steps, while workers start, are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from PIL import Image
from step import serving
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bitseam import config
from bitseam.api.opening import open_session
from bitseam.checks.client import ready_client
from bitseam.cli.machine import circumstances
from bitseam.data.batches import Batches
from bitseam.data.features import LiveFeatures
from bitseam.data.rows import Row, read_rows
from bitseam.data.survey import survey
from bitseam.runs.optimise import Stepper
from bitseam.text.prompts import Prompter

BATCH = 44  # rows, of the demo
ASKED = 4  # questions about each photograph
WARM = 10  # steps that are left out
WORDS = ["<unk>", "<s>", "</s>", *["what", "is", "in", "the", "picture", "thing", "number", "a", "?", "yes", "no"]]
RECIPE = """
name = "data"
seed = 0
[client]
checkpoint = "{folder}/vision"
image_size = 112
merge = 2
connector_hidden = 768
[server]
checkpoint = "{folder}/language"
tune = "full"
[seam]
width = 288
[streams.image]
channels = 96
gradient = "entropy-stochastic"
[text]
tokenizer = "{folder}/tokenizer"
prompt = "{{image}} {{question}}"
[data]
train = "{folder}/rows.jsonl"
cache_features = false
[train]
steps = 1000
batch = 44
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=665_000)
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = circumstances(os.cpu_count() or 1)
    for name, value in figures.items():
        print(f"{name:10} {value}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["BITSEAM_CACHE"] = str(folder / "cache")
        make_checkpoints(folder)
        (folder / "data.toml").write_text(RECIPE.format(folder=folder))
        figures["rows"] = at_size(folder, options.rows, options.images)
        print(json.dumps(figures["rows"], indent=1))
        figures["live"] = [waiting(folder, workers, options.steps) for workers in (0, 2)]
        print(json.dumps(figures["live"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def make_checkpoints(folder: Path) -> None:
    """Of the demo's shapes, random weights: time does not depend on them."""
    torch.manual_seed(0)
    vision = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    Dinov2Model(vision).save_pretrained(folder / "vision")
    square = {"height": 224, "width": 224}
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=square).save_pretrained(folder / "vision")
    llama = LlamaConfig(
        hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, vocab_size=32_000
    )
    LlamaForCausalLM(llama).save_pretrained(folder / "language")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder / "tokenizer")


def at_size(folder: Path, rows: int, images: int) -> dict[str, Any]:
    """Seconds until many rows are ready, memory, and milliseconds a micro-batch."""
    (folder / "small").mkdir()
    Image.new("RGB", (32, 32), "grey").save(folder / "small.jpg")
    picture = (folder / "small.jpg").read_bytes()
    for i in range(images):
        (folder / f"small/{i:06d}.jpg").write_bytes(picture)
    about = np.random.default_rng(0).integers(0, images, rows).tolist()
    with (folder / "rows.jsonl").open("w") as file:
        for i, image in enumerate(about):
            row = {"image": f"small/{image:06d}.jpg", "question": f"what is the thing number {i} in the picture ?"}
            file.write(json.dumps(row | {"answer": f"a {i}" if i % 2 else "yes", "task": "all"}) + "\n")
    recipe = config.load_recipe(folder / "data.toml")
    prompter = Prompter(recipe.text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    first, _ = timed(survey, recipe, prompter)
    start, found = timed(survey, recipe, prompter)
    order, batches = timed(Batches, found.train, Nothing(), prompter, BATCH, recipe.seed)
    batches(0)
    epoch = rows // BATCH
    places = {"beginning": 1, "middle": epoch // 2, "end": epoch - 21, "next epoch": epoch}
    milliseconds = {name: [timed(batches, n)[0] * 1e3 for n in range(at, at + 20)] for name, at in places.items()}
    return {
        "rows": rows,
        "images": len(set(about)),
        "first_start_s": first,
        "start_s": start + order,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "of_it_before_rows_bytes": before,
        "micro_batch_ms": {name: {"median": median(all_), "most": max(all_)} for name, all_ in milliseconds.items()},
    }


class Nothing:
    """In place of features."""

    ahead = 0

    def expect(self, coming: Sequence[tuple[Path, ...]]) -> None:
        pass

    def of(self, images: Sequence[Path]) -> torch.Tensor:
        return torch.zeros(len(images))


def waiting(folder: Path, workers: int, steps: int) -> dict[str, Any]:
    """Mean seconds of a step, and of its wait for pixels."""
    rows = photographs(folder, images=(steps + WARM) * BATCH // ASKED)
    out = folder / f"workers-{workers}"
    out.mkdir()
    waits: list[float] = []
    seconds: list[float] = []
    with serving(folder / "data.toml", out, {"data.workers": workers}) as recipe:
        recipe = replace(recipe, device="cpu")
        side = ready_client(recipe, str, "ask")
        with (
            open_session(recipe, side, training=True) as session,
            closing(LiveFeatures(side.model.vision, recipe.data.workers)) as features,
        ):
            pixels = features.pixels

            def waited(images: Sequence[Path]) -> torch.Tensor:
                took, got = timed(pixels, images)
                waits.append(took)
                return got

            features.pixels = waited  # type: ignore[method-assign]
            batches = Batches(rows, features, side.prompter, BATCH, recipe.seed, features.ahead)
            stepper = Stepper(side.model, recipe.client.rate, recipe.train)
            session.calibrate(*batches(0))
            waits.clear()
            for number in range(WARM + steps):
                start = time.perf_counter()
                part = session.step(number + 1, 0, True, *batches(number))
                stepper.step(part.answer_tokens)
                seconds.append(time.perf_counter() - start)
    step, wait = mean(seconds[WARM:]), mean(waits[WARM:])
    return {"workers": workers, "steps": steps, "step_s": step, "wait_s": wait, "share": wait / step}


def photographs(folder: Path, images: int) -> list[Row]:
    """Rows about JPEG files of 640 x 480, of some detail."""
    rng = np.random.default_rng(0)
    (folder / "large").mkdir(exist_ok=True)
    lines = []
    for i in range(images):
        path = folder / f"large/{i:05d}.jpg"
        if not path.exists():
            coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
            coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        for asked in range(ASKED):
            row = {"image": str(path), "question": f"what is the thing number {asked} in the picture ?"}
            lines.append(json.dumps(row | {"answer": "yes"}))
    (folder / "large.jsonl").write_text("\n".join(lines))
    return read_rows(folder / "large.jsonl")


def timed(call: Any, *given: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    got = call(*given)
    return time.perf_counter() - start, got


if __name__ == "__main__":
    main()
