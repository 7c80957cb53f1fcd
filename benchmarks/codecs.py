"""Every codec and quantizer on the same real features and gradients: bits on the wire, error, loss, speed.

    python benchmarks/codecs.py [--run DIR] [--questions FILE] [--json FILE] [--untimed]

After `make demo`, on the halves trained with fp16 both ways, whose features are quantized nowhere. Up: the connector's
outputs for test images, in messages of ten images; what is calibrated is calibrated on other images. Quantizers keep
the projection that they start with, the identity, and `LevelProjection` makes features of levels; codecs without a
quantizer take features of zero mean and unit deviation in each channel, by the same images' statistics. Down: the
gradients of the loss by those features, as they are.

bits_per_element  8 * len(payload) / elements, with learned tables once; channel statistics, sent once a run, left out
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
from rate_distortion import bounds, draw, entropy, index_counts, markdown
from torch import Tensor, nn
from torch.nn import functional as F

from bitseam import codecs, config
from bitseam.cli.machine import circumstances
from bitseam.cli.main import locate
from bitseam.codecs.one_bit import SCALES
from bitseam.data.features import LiveFeatures
from bitseam.data.rows import Row, read_rows
from bitseam.errors import ModelError
from bitseam.parties.checkpoint import load_client, load_server, newest
from bitseam.parties.models import ServerModel
from bitseam.parties.seam import build_quantizer, build_seam
from bitseam.parties.text import Prompter, TextBatch
from bitseam.quant import ChannelStatistics, LevelProjection, TensorRDFSQ

DEMO = Path("runs/demo/fp16")
CALIBRATION, QUESTIONS, MESSAGE = 256, 2048, 10  # images, questions, images
ELEMENTS, ROUNDS = 2_000_000, 5
CLIPS = np.arange(0.5, 3.3, 0.1).round(1).tolist()  # where none is given, that of least error in calibration is taken

QUANTIZERS = [  # quantizer, levels, clip, coding
    *(("rd-fsq", levels, None, coding) for levels in (2, 3, 4, 8) for coding in ("packed", "entropy")),
    *(("rd-fsq", 3, clip, "entropy") for clip in (1.9, 2.3, 4.5)),
    *((name, levels, None, "packed") for name in ("rd-fsq-tensor", "tanh-fsq") for levels in (2, 4, 8)),
    ("rd-fsq-tensor", 4, None, "entropy"),
    ("learned-clip-fsq", 4, config.Up().clip, "packed"),
    *(("rate-fsq", levels, clip, "entropy") for levels, clip in ((15, 7.4), (9, 6.4))),
]
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

Tensors = list[Tensor]  # messages (I, M, D)
Map = Callable[[Tensor], Tensor]
SAME = nn.Identity()


@dataclass(frozen=True)
class Way:
    """A row: features (..., D) -> front -> codec -> back -> (..., D)."""

    name: str
    codec: codecs.Codec
    front: Map = SAME
    back: Map = SAME
    quantizer: config.Up | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=DEMO, help="a run with floats at the seam; %(default)s by default")
    parser.add_argument("--questions", type=Path, help="the recipe's test file by default")
    parser.add_argument("--json", type=Path, help="write the figures there, and a picture beside them")
    parser.add_argument("--untimed", action="store_true", help="leave times out: the machine is not quiet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sample, about = load(*(newest(options.run, side) for side in ("client", "server")), options.questions)
    gradients, elements = sample.gradients(), 0 if options.untimed else ELEMENTS
    up = compare(ups(sample.calibration), "up", sample.features, elements, sample)
    down = compare([Way(name, codec) for name, codec in GRADIENTS.items()], "down", gradients, elements)
    features = statistics_of(sample.calibration)(torch.cat(sample.features))
    lines = {"up": bounds(features), "down": bounds(torch.cat(gradients))}
    figures = {"about": about, "rows": up + down, "lines": lines}
    print(json.dumps(about, indent=1), markdown(figures), sep="\n\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
        draw(figures, options.json.with_suffix(".png"))


@dataclass(frozen=True)
class Sample:
    """Features of other images to calibrate on (I, M, D); features and questions of each message; a frozen half."""

    calibration: Tensor
    features: Tensors
    texts: list[TextBatch]
    language: ServerModel

    @torch.no_grad()
    def loss(self, features: Tensors) -> Tensor:
        """Cross-entropy of the answers about each image (I,), nats, times I / tokens: its mean is that of a token."""
        sums, tokens = [], 0
        for text, x in zip(self.texts, features, strict=True):
            losses = F.cross_entropy(*self.language.answer_logits(text, x), reduction="none")
            image = torch.repeat_interleave(text.image, text.lengths)[text.answers]
            sums.append(torch.zeros(len(x)).index_add(0, image, losses))
            tokens += len(losses)
        return torch.cat(sums) * sum(map(len, sums)) / tokens

    def gradients(self) -> Tensors:
        """Of the loss of each message, summed over answer tokens: what the server sends."""
        leaves = [x.clone().requires_grad_() for x in self.features]
        pairs = zip(self.texts, leaves, strict=True)
        return [torch.autograd.grad(self.language.loss(text, x), x)[0] for text, x in pairs]


@torch.no_grad()
def load(client: Path, server: Path, questions: Path | None) -> tuple[Sample, dict[str, Any]]:
    """What is compared on, and the circumstances."""
    model, recipe, identity = load_client(client, locate)
    language, _, other = load_server(server, locate)
    if identity != other or language.image_projection is not None:
        raise ModelError(f"{client} and {server}: not the halves of one run with floats at the seam")
    by_image: dict[Path, list[Row]] = {}
    for row in read_rows(questions or recipe.data.test):
        by_image.setdefault(row.image, []).append(row)
    groups = [list(by_image.values())[i] for i in np.random.default_rng(0).permutation(len(by_image))]
    asked = np.cumsum([len(group) for group in groups[CALIBRATION:]])
    tested = groups[CALIBRATION:][: int(np.searchsorted(asked, QUESTIONS)) + 1]
    messages = [tested[i : i + MESSAGE] for i in range(0, len(tested), MESSAGE)]
    tower, prompter = LiveFeatures(model.vision.eval()), Prompter(recipe.text, locate)

    def images(chunk: list[list[Row]]) -> Tensor:
        return model.vision(tower.of([group[0].image for group in chunk]))

    def text(chunk: list[list[Row]]) -> TextBatch:
        return prompter.batch(*zip(*((r.question, r.answer, r.image) for rows in chunk for r in rows), strict=True))

    known = torch.cat([images(groups[i : i + 32]) for i in range(0, CALIBRATION, 32)])
    language.eval().requires_grad_(False)
    sample = Sample(known, [images(chunk) for chunk in messages], [text(chunk) for chunk in messages], language)
    counts = {"images": len(tested), "questions": sum(map(len, tested)), "calibration_images": CALIBRATION}
    return sample, circumstances(torch.get_num_threads()) | counts | {"weights": str(identity)}


def statistics_of(calibration: Tensor) -> ChannelStatistics:
    normalise = ChannelStatistics(calibration.shape[-1], 0.0).eval()
    normalise.calibrate(calibration)
    return normalise


def ups(calibration: Tensor) -> list[Way]:
    """The codecs of features, calibrated on features (I, M, D)."""
    normalise = statistics_of(calibration)
    back = projection(normalise.mean, normalise.std)
    direct = [Way(name, codec, normalise, back) for name, codec in FEATURES.items()]
    return [quantized(calibration, *settings) for settings in QUANTIZERS] + direct


@torch.no_grad()
def quantized(calibration: Tensor, quantizer: Any, levels: int, clip: float | None, coding: Any) -> Way:
    up = config.Up(quantizer, levels=levels, clip=clip or 1.0, coding=coding)
    if clip is None and quantizer != "rd-fsq-tensor":  # that one knows no clip
        std = statistics_of(calibration).std
        ways = (calibrated(replace(up, clip=clip), calibration) for clip in CLIPS)
        return min(
            ways, key=lambda way: float(((way.back(way.front(calibration)) - calibration) / std).square().mean())
        )
    return calibrated(up, calibration)


@torch.no_grad()
def calibrated(up: config.Up, calibration: Tensor) -> Way:
    width = calibration.shape[-1]
    quantizer = build_quantizer(up, width).eval()
    quantizer.calibrate(calibration)
    if isinstance(quantizer, TensorRDFSQ):  # it starts at random, and its server learns what the others are told
        nn.init.eye_(quantizer.project.weight)
        nn.init.zeros_(quantizer.project.bias)
        std, mean = torch.std_mean(calibration, correction=0)
        back = projection(mean.expand(width), quantizer.DEVIATIONS * std.expand(width))
    else:
        back = projection(*quantizer.statistics())
    codec = build_seam(config.Seam(width, image_up=up)).image.up
    if isinstance(codec, codecs.EntropyUniform):
        codec = codec.learned(codec.counts(quantizer(calibration).levels))
    name = f"{up.quantizer} {up.levels}" + ("" if isinstance(quantizer, TensorRDFSQ) else f" to {up.clip:g}")
    name += ", entropy" * (up.coding == "entropy")
    return Way(name, codec, lambda x: quantizer(x).levels, back, up)


def projection(mean: Tensor, std: Tensor) -> LevelProjection:
    """Levels -> features, the server's part."""
    made = LevelProjection(len(mean), len(mean))
    made.calibrate(mean, std)
    return made


@torch.no_grad()
def compare(
    ways: list[Way], direction: str, tensors: Tensors, elements: int, sample: Sample | None = None
) -> list[dict[str, Any]]:
    """A row a way. elements: of the tensor that times are taken on, 0 for none; sample: where tensors are features."""
    normalise: Map = statistics_of(sample.calibration) if sample else SAME
    unit = torch.cat([normalise(x) for x in tensors]).double()
    exact = sample and sample.loss(tensors)
    default = sample and sample.loss(cross(calibrated(config.Up(), sample.calibration), tensors)[0])
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
                "quantizer": None if way.quantizer is None else asdict(way.quantizer),
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
    # A table in each message, or the same for all.
    together = np.concatenate if isinstance(way.codec, codecs.EntropyStochastic) else sum
    return received, sent, None if counts[0] is None else together(counts)


def more(name: str, loss: Tensor | None, base: Tensor | None) -> dict[str, float | None]:
    """Mean of the differences of losses (I,), and its standard error."""
    if loss is None or base is None:
        return dict.fromkeys((name, f"{name}_error"))
    return {name: float((loss - base).mean()), f"{name}_error": float((loss - base).std() / len(loss) ** 0.5)}


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
