"""Entropy coding: bits beside the empirical entropy on real features, and speed beside constriction on one table.

    python benchmarks/entropy.py [--json FILE] [--groups N ...]

Bits: the demo's quantizer on DINOv2 features of CIFAR-10 test photographs; connector, statistics and tables from the
first 256, codes of the next 512 in messages of 32, as the demo sends them. The entropy is that of each group's indices
over all messages; what was sent includes lane ends, headers and the tables, once.

Speed: one thread, (8, 729, 1280) float32 at 4 levels, from floats to bytes and back with a table for each channel,
beside constriction alone on the same indices, as int32 already, with one table for all of them. Both are timed in the
same rounds; figures are medians, and the first round is dropped.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import constriction
import numpy as np
import torch
from PIL import Image
from processes import RECIPE
from rate_distortion import entropy

from bitseam.cli.machine import circumstances
from bitseam.codecs import EntropyUniform
from bitseam.config import load_recipe
from bitseam.data.assets import path_of
from bitseam.runs.checkpoint import build_client

CALIBRATION, CODED, MESSAGE = 256, 512, 32
SHAPE = (8, 729, 1280)
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--groups", type=int, nargs="*", default=[1, 16, 64, 96], metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = circumstances(torch.get_num_threads()) | {"constriction": version("constriction")}
    for name, value in about.items():
        print(f"{name:12} {value}")
    bits = measure_bits(options.groups)
    print(f"\n{'groups':>8}{'entropy':>10}{'sent':>10}{'over':>9}{'tables':>9}   bits an index; tables in bytes")
    for groups, row in bits.items():
        print(f"{groups:>8}{row['entropy']:10.4f}{row['sent']:10.4f}{row['over']:9.3%}{row['table_bytes']:9.0f}")
    speed = measure_speed()
    print(f"\n{'':30}{'ms':>9}{'Msymbol/s':>12}{'of constriction':>18}")
    for name, row in speed.items():
        print(f"{name:30}{row['ms']:9.1f}{row['msymbols']:12.1f}{row['share']:18.2f}")
    if options.json:
        options.json.write_text(json.dumps({"about": about, "bits": bits, "speed": speed}, indent=1) + "\n")


def measure_bits(choices: list[int]) -> dict[int, dict[str, float]]:
    recipe = load_recipe(RECIPE)
    torch.manual_seed(recipe.seed)
    model = build_client(recipe, lambda name: str(path_of(name))).eval()
    photographs = np.load(path_of("cifar10") / "images.npy", mmap_mode="r")[-10_000:][: CALIBRATION + CODED]
    with torch.no_grad():
        batches = [
            model.vision.features(model.vision.pixels([Image.fromarray(p) for p in part]))
            for part in np.split(photographs, len(photographs) // MESSAGE)
        ]
        calibration = torch.cat(batches[: CALIBRATION // MESSAGE])
        model.vision.calibrate(calibration)
        image = model.senders()["image"]
        image.calibrate(model.vision(calibration))
        known = image(model.vision(calibration)).levels
        coded = [image(model.vision(batch)).levels for batch in batches[CALIBRATION // MESSAGE :]]
    figures = {}
    for groups in choices:
        codec = EntropyUniform(image.settings.levels, image.settings.clip, groups)
        codec = codec.learned(codec.counts(known))
        counts = sum(codec.counts(levels) for levels in coded)
        total = float(counts.sum())
        tables = len(codec.table_bytes())
        sent = 8 * (sum(len(codec.encode(levels)) for levels in coded) + tables) / total
        least = entropy(counts)
        figures[groups] = {"entropy": least, "sent": sent, "over": sent / least - 1, "table_bytes": tables}
    return figures


def measure_speed() -> dict[str, dict[str, float]]:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    codec = EntropyUniform(4, 1.49, SHAPE[-1])
    codec = codec.learned(codec.counts(x))
    payload = codec.encode(x)
    pooled = EntropyUniform(4, 1.49, 1)
    counts = pooled.counts(x)[0]
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
    symbols = np.random.default_rng(0).choice(4, x.numel(), p=counts / counts.sum()).astype(np.int32)

    def baseline_encode() -> np.ndarray:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        return coder.get_compressed()

    words = baseline_encode()
    work: dict[str, Callable[[], object]] = {
        "encode, constriction": baseline_encode,
        "decode, constriction": lambda: constriction.stream.stack.AnsCoder(words).decode(model, symbols.size),
        "encode, a table a channel": partial(codec.encode, x),
        "decode, a table a channel": partial(codec.decode, payload, SHAPE),
    }
    rounds = [{name: seconds(run) for name, run in work.items()} for _ in range(ROUNDS + 1)][1:]
    medians = {name: statistics.median(each[name] for each in rounds) for name in work}
    return {
        name: {
            "ms": 1e3 * time,
            "msymbols": x.numel() / time / 1e6,
            "share": medians[f"{name.split(',')[0]}, constriction"] / time,
        }
        for name, time in medians.items()
    }


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
