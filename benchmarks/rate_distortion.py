"""What benchmarks/codecs.py needs of theory, and how it shows its rows: entropies, bounds, a table, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from bitseam.codecs import (
    BlockwiseInt,
    Codec,
    EntropyStochastic,
    EntropyUniform,
    NormalFloat,
    OneBit,
    Stochastic,
    Uniform,
)
from bitseam.codecs.packing import packed_bytes, unpack
from bitseam.quant import planning

TITLES = {"up": "Up: features of test images", "down": "Down: gradients by these features"}
COLOURS = {  # by how a codec's name begins
    ("rd-fsq-tensor", "tanh", "learned"): ("tab:cyan", "other quantizers"),
    ("rd-fsq", "rate", "step", "stochastic", "entropy-stochastic"): ("tab:blue", "what recipes take"),
    ("one-bit",): ("tab:purple", "one bit"),
    ("top-k", "randomized"): ("tab:orange", "sparse"),
    ("splitfc",): ("tab:green", "SplitFC"),
    ("",): ("tab:gray", "blocks and floats"),
}
STYLES = (("-", "black"), (":", "black"), ("--", "tab:gray"))
LEAST_BITS, MOST_BITS = 0.05, 14.0


def bounds(x: Tensor) -> dict[str, list[tuple[float, float]]]:
    """Lines of (bits, relative mse) for x (..., D), tokens taken as independent of each other.

    Gaussian R(D) is the most that values of these variances can need; the lower bound goes by each channel's entropy,
    and holds for coders that take every channel by itself. Channels together are turned to the principal directions of
    the first half, and measured on the second.
    """
    rows = x.reshape(-1, x.shape[-1]).double()
    entropy_powers = 4 ** planning.differential_entropy(rows) / (2 * np.pi * np.e)
    first, second = rows.tensor_split(2)
    turned = second @ torch.linalg.eigh(first.T.cov()).eigenvectors
    return {
        "Gaussian R(D), channel by channel": rate_distortion_curve(rows.square().mean(dim=0), rows),
        "Shannon lower bound, channel by channel": rate_distortion_curve(entropy_powers, rows),
        "Gaussian R(D), channels together": rate_distortion_curve(turned.square().mean(dim=0), second),
    }


def rate_distortion_curve(powers: Tensor, rows: Tensor) -> list[tuple[float, float]]:
    """Reverse water-filling over Gaussian channels of these powers (D,) (Cover and Thomas, chapter 10)."""
    level = float(powers.max()) * torch.logspace(0, -24, 97, 2, dtype=torch.float64)[:, None]
    bits = planning.water_filling(powers.clamp_min(1e-300), torch.ones_like(powers), level).mean(dim=1)
    error = torch.minimum(powers, level).mean(dim=1) / rows.square().mean()
    return [(float(f"{b:.4g}"), float(f"{e:.4g}")) for b, e in zip(bits.tolist(), error.tolist(), strict=True)]


def index_counts(codec: Codec, payload: bytes, decoded: Tensor) -> np.ndarray | None:
    """How often each index came in a message, by table (G, L); None for a codec that has no indices of all elements."""
    match codec:
        case Uniform():
            return EntropyUniform(codec.levels, codec.clip).counts(decoded)
        case EntropyUniform():
            return codec.counts(decoded)
        case EntropyStochastic():
            return codec.read(payload, decoded.shape).counts()
        case Stochastic() | BlockwiseInt():
            levels = codec.levels
        case NormalFloat():
            levels = 2**codec.bits
        case OneBit():
            levels = 2
        case _:
            return None
    tail = payload[-packed_bytes(decoded.numel(), levels) :]  # indices come last
    return np.bincount(unpack(tail, decoded.numel(), levels), minlength=levels)[None]


def entropy(counts: np.ndarray) -> float:
    """Bits an index, each table (G, L) on its own."""
    weights = torch.from_numpy(counts.sum(axis=1)).double()
    return float(planning.entropy(torch.from_numpy(counts)) @ weights / weights.sum())


def markdown(figures: dict[str, Any]) -> str:
    """The rows as a table a direction; times in copies of the tensor."""
    tables = []
    for direction in TITLES:
        rows = [row for row in figures["rows"] if row["direction"] == direction]
        names = [direction, "bits", "entropy", "relative MSE", "cosine", "loss", "over default", "encode", "decode"]
        cells = [[_cell(row, name) for name in names[1:]] for row in rows]
        kept = [any(column) for column in zip(*cells, strict=True)]  # gradients have no loss; times may be left out
        lines = [
            names,
            ["---"] + ["---:"] * len(kept),
            *([row["codec"], *c] for row, c in zip(rows, cells, strict=True)),
        ]
        shown = ([line[0], *(cell for cell, keep in zip(line[1:], kept, strict=True) if keep)] for line in lines)
        tables.append("\n".join(f"| {' | '.join(line)} |" for line in shown))
    return "\n\n".join(tables)


def _cell(row: dict[str, Any], name: str) -> str:
    match name:
        case "bits":
            return f"{row['bits_per_element']:.2f}"
        case "entropy":
            return "" if row["entropy_bits"] is None else f"{row['entropy_bits']:.2f}"
        case "relative MSE":
            return f"{row['mse']:#.2g}".rstrip(".")
        case "cosine":
            return f"{row['cosine']:.4f}"
        case "loss" | "over default":
            key = "loss_increase" if name == "loss" else "over_default"
            return "" if row[key] is None else f"{row[key]:+z.4f} ± {row[f'{key}_error']:.4f}"
        case _:
            return "" if row["copy_s"] is None else f"{row[f'{name}_s'] / row['copy_s']:.1f}"


def draw(figures: dict[str, Any], path: Path) -> None:
    """Bits on the wire against relative MSE, both logarithmic, a panel a direction."""
    figure = Figure(figsize=(16, 9), layout="constrained")
    for axes, (direction, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
        for (name, line), (style, colour) in zip(figures["lines"][direction].items(), STYLES, strict=True):
            axes.plot(*zip(*line, strict=True), style, color=colour, lw=1, label=name)
        rows = [row for row in figures["rows"] if row["direction"] == direction and row["bits_per_element"] < MOST_BITS]
        errors = [row["mse"] for row in rows]
        low, high = min(errors) / 2, max(errors) * 2
        axes.set(xscale="log", yscale="log", xlim=(LEAST_BITS, MOST_BITS), ylim=(low, high), title=title)
        axes.set(xlabel="bits on the wire, a value", ylabel="squared error, relative to the mean square")
        axes.set_xticks([0.1, 0.25, 0.5, 1, 2, 4, 8], minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
        for colour, meaning in dict.fromkeys(map(_colour, rows)):
            at = [(row["bits_per_element"], row["mse"]) for row in rows if _colour(row) == (colour, meaning)]
            axes.scatter(*zip(*at, strict=True), 16, color=colour, zorder=3, label=meaning)
        groups: dict[str, list[dict[str, Any]]] = {}  # of rows with the same levels, packed and at their entropy
        for row in sorted(rows, key=lambda row: (-float(f"{row['mse']:.4g}"), -row["bits_per_element"])):
            groups.setdefault(f"{row['mse']:.4g}", []).append(row)
        place = (axes.transData + axes.transAxes.inverted()).transform  # in shares of the axes
        places = [place([(r["bits_per_element"], r["mse"]) for r in same]).tolist() for same in groups.values()]
        taken = [(x - 0.006, y, 0.012) for same in places for x, y in same]
        for same, at in zip(groups.values(), places, strict=True):
            name = " / ".join(dict.fromkeys(row["codec"].removesuffix(", entropy") for row in same))
            left, y, width = _free(*at[0], 0.0082 * len(name), taken)
            near, side = (left, "left") if left > at[0][0] else (left + width, "right")
            ink = {"color": _colour(same[0])[0], "transform": axes.transAxes}
            axes.plot(*zip(*at, (near, y), strict=True), lw=0.5, zorder=2, **ink)
            halo = [withStroke(linewidth=2, foreground="white")]
            axes.text(near, y, name, ha=side, fontsize=7.5, va="center_baseline", path_effects=halo, zorder=4, **ink)
        axes.legend(fontsize=8, loc="lower left", title="joined: packed, and at their entropy", title_fontsize=8)
    figure.savefig(path, dpi=120)
    Image.open(path).quantize(64).save(path, optimize=True)  # a third of the bytes


def _colour(row: dict[str, Any]) -> tuple[str, str]:
    return next(COLOURS[starts] for starts in COLOURS if row["codec"].startswith(starts))


def _free(x: float, y: float, width: float, taken: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The place (left, y, width) nearest to (x, y) where a label meets none of those taken, and takes it."""
    for step in range(200):
        for left in (x + 0.012, x - 0.012 - width):
            for high in (y + 0.004 * step, y - 0.004 * step):
                free = all(abs(high - b) > 0.02 or left > a + w or a > left + width for a, b, w in taken)
                if free and 0 < left < 1 - width and 0.01 < high < 0.99 and (left > 0.4 or high > 0.26):
                    taken.append((left, high, width))
                    return taken[-1]
    return x, y, width
