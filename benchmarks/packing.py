"""Fixed-rate encode and decode of the paper's image features, as multiples of one copy of the tensor.

    python benchmarks/packing.py [--device cuda] [--json FILE]

One thread, (32, 729, 1280) float32, at the best clips for a Gaussian. The copy is timed beside the codecs in the same
rounds, so that a machine that slows down slows all of them; figures are medians, and the first round is dropped.

On a GPU the copy is the device's own, encode and decode go from and to bytes there, and `across` has the bytes' way
between it and the CPU as well; the bytes must be those that the CPU makes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bitseam.cli.machine import circumstances
from bitseam.codecs import Uniform, fused_gpu

SHAPE = (32, 729, 1280)
CODECS = {levels: Uniform(levels, clip) for levels, clip in ((2, 0.8), (3, 1.22), (4, 1.49), (8, 2.05), (16, 2.51))}
ROUNDS = 7
IN_A_ROW = 20  # on a GPU, where one alone is shorter than what it takes to start it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the tensor is")
    arguments = parser.parse_args()
    device, target = torch.device(arguments.device), arguments.json
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if device.type == "cuda" and not fused_gpu.compiles(device):
        parser.error("--device cuda: torch.compile fails on this GPU, as the warning says; the codec goes by the CPU")
    torch.set_num_threads(1)
    about = circumstances(torch.get_num_threads())
    if device.type == "cuda":
        about["gpu"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    for name, value in about.items():
        print(f"{name:10} {value}")
    figures = measure(device)
    print(f"\n{'':26}{'ms':>9}{'copies':>9}{'bits/element':>15}")
    for name, figure in figures.items():
        bits = f"{figure['bits']:15.3f}" if "bits" in figure else ""
        print(f"{name:26}{figure['ms']:9.3f}{figure['copies']:9.2f}{bits}")
    if target:
        target.write_text(json.dumps({"about": about, "figures": figures}, indent=1) + "\n")


def measure(device: torch.device) -> dict[str, dict[str, float]]:
    here = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    payloads = {levels: codec.encode(here) for levels, codec in CODECS.items()}
    x = here.to(device)
    room = torch.zeros_like(x)  # touched already: the copy pays for no fresh pages
    work: dict[str, Callable[[], object]] = {"copy": partial(room.copy_, x)}
    bits = {}
    for levels, codec in CODECS.items():
        across = ""
        if device.type == "cuda":
            check(levels, x, payloads[levels])
            octets = torch.frombuffer(bytearray(payloads[levels]), dtype=torch.uint8).to(device)
            work[f"encode, {levels} levels"] = partial(fused_gpu.pack_words, x.view(-1), levels, codec.clip)
            work[f"decode, {levels} levels"] = partial(fused_gpu.unpack_words, octets, levels, codec.clip)
            across = ", across"
        work[f"encode, {levels} levels{across}"] = partial(codec.encode, x)
        work[f"decode, {levels} levels{across}"] = partial(codec.decode, payloads[levels], SHAPE, device)
        bits[f"encode, {levels} levels"] = 8 * len(payloads[levels]) / x.numel()
    rounds = [{name: seconds(run, device) for name, run in work.items()} for _ in range(ROUNDS + 1)][1:]
    medians = {name: statistics.median(each[name] for each in rounds) for name in work}
    figures = {name: {"ms": 1e3 * time, "copies": time / medians["copy"]} for name, time in medians.items()}
    for name, rate in bits.items():
        figures[name]["bits"] = rate
    return figures


def check(levels: int, x: Tensor, payload: bytes) -> None:
    """That a GPU makes the CPU's bytes and levels."""
    codec = CODECS[levels]
    if codec.encode(x) != payload:
        raise SystemExit(f"{levels} levels: the GPU's bytes are not the CPU's")
    if not torch.equal(codec.decode(payload, SHAPE, x.device).cpu(), codec.decode(payload, SHAPE)):
        raise SystemExit(f"{levels} levels: the GPU's levels are not the CPU's")


def seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(IN_A_ROW):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / IN_A_ROW
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
