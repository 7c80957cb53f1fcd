"""Every codec and quantizer on the same real features and gradients: bits on the wire, error, loss, speed.

    python benchmarks/codecs.py [--run DIR] [--questions FILE] [--json FILE] [--untimed]

After `make demo`, on the halves trained with fp16 both ways, whose features are quantized nowhere. Up: the connector's
outputs for test images, in messages of ten images; what is calibrated or planned is so on other test images. Quantizers
keep the projection that they start with, the identity, and `LevelProjection` makes features of levels; codecs without a
quantizer take features of zero mean and unit deviation in each channel, by the same images' statistics. Down: the
gradients of the loss by those features, as they are.

bits_per_element  8 * len(payload) / elements, with learned tables once; channel statistics left out
entropy_bits      of the indices, within each table where there are several; null for codecs without an index a value
mse, cosine       of all values as one vector, up in deviations of a channel; mse is relative to the mean square
loss_increase     cross-entropy of an answer token over that with exact features, nats, language model frozen;
                  loss_increase_error is the standard error of it, over the images
over_default      cross-entropy over that with the default of recipes, image by image; and over_default_error
encode_s          of the codec alone, on this tensor repeated to two million elements: medians, first round dropped;
                  copy_s is one copy of it in the same rounds; all null with --untimed, for a machine that is not quiet
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from timeit import timeit
from typing import Any

import numpy as np
import torch
from frozen import Sample, Tensors, load, more, statistics_of
from rate_distortion import bounds, draw, entropy, index_counts, markdown
from torch import Tensor, nn
from torch.nn import functional as F

from bitseam import codecs, config
from bitseam.cli.machine import circumstances
from bitseam.codecs.one_bit import SCALES
from bitseam.evals.planning import UpPlanner
from bitseam.quant import LevelProjection, TensorRDFSQ
from bitseam.runs.checkpoint import newest
from bitseam.streams import Sender

DEMO = Path("runs/demo/fp16")
ELEMENTS, ROUNDS = 2_000_000, 5
CLIPS = np.arange(0.5, 3.3, 0.1).round(1).tolist()  # where none is given, that of least error in calibration is taken

FIXED, ENTROPY = "uniform", "entropy-uniform"
QUANTIZERS = [  # quantizer, levels, clip, codec
    *(("rd-fsq", levels, None, codec) for levels in (2, 3, 4, 8) for codec in (FIXED, ENTROPY)),
    *(("rd-fsq", 3, clip, ENTROPY) for clip in (1.9, 2.3, 4.5)),
    *((name, levels, None, FIXED) for name in ("rd-fsq-tensor", "tanh-fsq") for levels in (2, 4, 8)),
    ("rd-fsq-tensor", 4, None, ENTROPY),
    ("learned-clip-fsq", 4, config.Stream().clip, FIXED),
    *(("rate-fsq", 31, clip, ENTROPY) for clip in (15, 30, 45, 75)),
]
PLANS = (0.5, 1, 1.5, 2)  # bits that `bitseam plan` is asked for
_BOTH: dict[str, codecs.Codec] = {
    **{"fp32": codecs.Fp32(), "fp16": codecs.Fp16(), "bf16": codecs.Bf16()},
    **{f"one-bit, {scale}": codecs.OneBit(scale=scale) for scale in SCALES},
    **{f"top-k {share:g} of {bits} bits": codecs.TopK(share, bits) for share, bits in ((0.1, 16), (0.25, 4))},
    "randomized top-k 0.1 of 16 bits": codecs.RandomizedTopK(0.1),
    **{f"splitfc {bits}": codecs.SplitFC(bits) for bits in (1, 2, 4)},
}
FEATURES = _BOTH | {
    **{"fp8 e4m3": codecs.Fp8("e4m3"), "int8": codecs.BlockwiseInt(8), "int4": codecs.BlockwiseInt(4, 64)},
    **{f"nf{bits}": codecs.NormalFloat(bits) for bits in (4, 3, 2)},
}
GRADIENTS = _BOTH | {
    "fp8 e5m2": codecs.Fp8("e5m2"),
    **{f"int{bits}, stochastic": codecs.BlockwiseInt(bits, 64, "stochastic") for bits in (8, 4)},
    **{f"stochastic {levels}": codecs.Stochastic(levels) for levels in (2, 3, 4, 16)},
    **{f"entropy-stochastic {step:g}": codecs.EntropyStochastic(step) for step in (0.5, 1.5, 10, 60)},
}

Map = Callable[[Tensor], Tensor]
SAME = nn.Identity()


@dataclass(frozen=True)
class Way:
    """A row: features (..., D) -> front -> codec -> back -> (..., D)."""

    name: str
    codec: codecs.Codec
    front: Map = SAME
    back: Map = SAME
    stream: config.Stream | None = None  # whose quantizer it is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=DEMO, help="a run with floats at the seam; %(default)s by default")
    parser.add_argument("--questions", type=Path, help="the recipe's test file by default")
    parser.add_argument("--json", type=Path, help="write the figures there, and a picture beside them")
    parser.add_argument("--untimed", action="store_true", help="leave times out: the machine is not quiet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sample, counts = load(*(newest(options.run, side) for side in ("client", "server")), options.questions)
    about = circumstances(torch.get_num_threads()) | counts
    gradients, elements = sample.gradients(), 0 if options.untimed else ELEMENTS
    up = compare(ups(sample), "up", sample.features, elements, sample)
    down = compare([Way(name, codec) for name, codec in GRADIENTS.items()], "down", gradients, elements)
    features = statistics_of(sample.calibration)(torch.cat(sample.features))
    lines = {"up": bounds(features), "down": bounds(torch.cat(gradients))}
    figures = {"about": about, "rows": up + down, "lines": lines}
    print(json.dumps(about, indent=1), markdown(figures), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
        draw(figures, options.json.with_suffix(".png"))


def ups(sample: Sample) -> list[Way]:
    """The codecs of features."""
    normalise = statistics_of(sample.calibration)
    back = projection(normalise.mean, normalise.std)
    direct = [Way(name, codec, normalise, back) for name, codec in FEATURES.items()]
    quantizers = [quantized(sample.calibration, *settings) for settings in QUANTIZERS]
    return quantizers + [planned(sample.planner, bits) for bits in PLANS] + direct


def planned(planner: UpPlanner, bits: float) -> Way:
    coded = planner.of_bits(bits).coded["image"]
    codec = coded.codec
    written = {"id": ENTROPY, "groups": codec.groups}
    stream = config.Stream("step-fsq", levels=codec.levels, codec=written, steps=coded.channels.step.tolist())
    back = projection(*coded.quantizer.statistics())
    return Way(f"step-fsq planned for {bits:g}", codec, coded.levels, back, stream)


@torch.no_grad()
def quantized(calibration: Tensor, quantizer: Any, levels: int, clip: float | None, codec: str) -> Way:
    stream = config.Stream(quantizer, levels=levels, clip=clip or 1.0, codec={"id": codec})
    if clip is None and quantizer != "rd-fsq-tensor":  # that one knows no clip
        std = statistics_of(calibration).std
        ways = (calibrated(replace(stream, clip=clip), calibration) for clip in CLIPS)
        return min(
            ways, key=lambda way: float(((way.back(way.front(calibration)) - calibration) / std).square().mean())
        )
    return calibrated(stream, calibration)


@torch.no_grad()
def calibrated(stream: config.Stream, calibration: Tensor) -> Way:
    width = calibration.shape[-1]
    sender = Sender("image", 0, stream, width).eval()
    quantizer, codec = sender.quantizer, sender.codec(0)
    quantizer.calibrate(calibration)
    if isinstance(quantizer, TensorRDFSQ):  # it starts at random, and its server learns what the others are told
        nn.init.eye_(quantizer.project.weight)
        nn.init.zeros_(quantizer.project.bias)
        std, mean = torch.std_mean(calibration, correction=0)
        back = projection(mean.expand(width), quantizer.DEVIATIONS * std.expand(width))
    else:
        back = projection(*quantizer.statistics(), rotation=quantizer.rotation())
    if isinstance(codec, codecs.EntropyUniform):
        codec = codec.learned(codec.counts(quantizer(calibration).levels))
    name = f"{stream.quantizer} {stream.levels}"
    name += "" if isinstance(quantizer, TensorRDFSQ) else f" to {stream.clip:g}"
    name += ", entropy" * (stream.codec["id"] == ENTROPY)
    return Way(name, codec, lambda x: quantizer(x).levels, back, stream)


def projection(mean: Tensor, std: Tensor, rotation: Tensor | None = None) -> LevelProjection:
    """Levels -> features, the server's part."""
    made = LevelProjection(len(mean), len(mean), rotated=rotation is not None)
    made.calibrate(mean, std)
    if rotation is not None:
        made.rotate(rotation)
    return made


@torch.no_grad()
def compare(
    ways: list[Way], direction: str, tensors: Tensors, elements: int, sample: Sample | None = None
) -> list[dict[str, Any]]:
    """A row a way. elements: of the tensor that times are taken on, 0 for none; sample: where tensors are features."""
    normalise: Map = statistics_of(sample.calibration) if sample else SAME
    unit = torch.cat([normalise(x) for x in tensors]).double()
    exact = sample and sample.loss(tensors)
    default = sample and sample.loss(cross(calibrated(config.Stream(), sample.calibration), tensors)[0])
    rows = []
    for way in ways:
        received, sent, counts = cross(way, tensors)
        got = torch.cat([normalise(x) for x in received]).double()
        loss = sample and sample.loss(received)
        rows.append(
            {
                "codec": way.name,
                "direction": direction,
                "bits_per_element": 8 * sent / unit.numel(),
                "entropy_bits": None if counts is None else entropy(counts),
                "mse": float((got - unit).square().mean() / unit.square().mean()),
                "cosine": float(F.cosine_similarity(got.flatten(), unit.flatten(), dim=0)),
                **more("loss_increase", loss, exact),
                **more("over_default", loss, default),
                **speed(way.codec, torch.cat([way.front(x) for x in tensors]), elements),
                "elements": unit.numel(),
                "settings": codecs.canonical({k: v for k, v in way.codec.config().items() if k != "tables"}),
                "stream": None if way.stream is None else asdict(way.stream),
            }
        )
    return rows


def cross(way: Way, tensors: Tensors) -> tuple[Tensors, int, np.ndarray | None]:
    """What arrives, the bytes it took, and how often each index came, by table: (G, L)."""
    generator = torch.Generator().manual_seed(0)
    received, counts, sent = [], [], len(way.codec.table_bytes()) if isinstance(way.codec, codecs.EntropyUniform) else 0
    for x in tensors:
        taken = way.front(x)
        payload = way.codec.encode(taken, generator)
        decoded = way.codec.decode(payload, taken.shape)
        received.append(way.back(decoded))
        counts.append(index_counts(way.codec, payload, decoded))
        sent += len(payload)
    return received, sent, None if counts[0] is None else sum(counts)


def speed(codec: codecs.Codec, x: Tensor, elements: int) -> dict[str, float | None]:
    """Seconds, on x (I, M, D) repeated to so many elements; of none, no times."""
    if not elements:
        return dict.fromkeys(("encode_s", "decode_s", "copy_s"))
    x = x.repeat(-(-elements // x.numel()), 1, 1)[: -(-elements // x[0].numel())].contiguous()
    room, payload = torch.zeros_like(x), codec.encode(x)
    work = {"encode_s": partial(codec.encode, x), "decode_s": partial(codec.decode, payload, x.shape)}
    work |= {"copy_s": partial(room.copy_, x)}
    rounds = [{name: timeit(run, number=1) for name, run in work.items()} for _ in range(ROUNDS + 1)][1:]
    return {name: median(each[name] for each in rounds) for name in work}


if __name__ == "__main__":
    main()
