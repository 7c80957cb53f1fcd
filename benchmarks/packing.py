"""Fixed-rate encode and decode of the paper's image features, as multiples of one copy of the tensor.

    python benchmarks/packing.py [--json FILE]

One thread, (32, 729, 1280) float32, at the best clips for a Gaussian. The copy is timed beside the codecs in the same
rounds, so that a machine that slows down slows all of them; figures are medians, and the first round is dropped.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bitseam.cli.machine import circumstances
from bitseam.codecs import Uniform

SHAPE = (32, 729, 1280)
CODECS = {levels: Uniform(levels, clip) for levels, clip in ((2, 0.8), (3, 1.22), (4, 1.49), (8, 2.05), (16, 2.51))}
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    target = parser.parse_args().json
    torch.set_num_threads(1)
    about = circumstances(torch.get_num_threads())
    for name, value in about.items():
        print(f"{name:10} {value}")
    figures = measure()
    print(f"\n{'':18}{'ms':>9}{'copies':>9}{'bits/element':>15}")
    for name, figure in figures.items():
        bits = f"{figure['bits']:15.3f}" if "bits" in figure else ""
        print(f"{name:18}{figure['ms']:9.1f}{figure['copies']:9.2f}{bits}")
    if target:
        target.write_text(json.dumps({"about": about, "figures": figures}, indent=1) + "\n")


def measure() -> dict[str, dict[str, float]]:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    room = torch.zeros(SHAPE)  # touched already: the copy pays for no fresh pages
    payloads = {levels: codec.encode(x) for levels, codec in CODECS.items()}
    work: dict[str, Callable[[], object]] = {"copy": partial(room.copy_, x)}
    bits = {}
    for levels, codec in CODECS.items():
        work[f"encode, {levels} levels"] = partial(codec.encode, x)
        work[f"decode, {levels} levels"] = partial(codec.decode, payloads[levels], SHAPE)
        bits[f"encode, {levels} levels"] = 8 * len(payloads[levels]) / x.numel()
    rounds = [{name: seconds(run) for name, run in work.items()} for _ in range(ROUNDS + 1)][1:]
    medians = {name: statistics.median(each[name] for each in rounds) for name in work}
    figures = {name: {"ms": 1e3 * time, "copies": time / medians["copy"]} for name, time in medians.items()}
    for name, rate in bits.items():
        figures[name]["bits"] = rate
    return figures


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
