"""A plan beside what theory allows, and the plan of gradients.

Bits and distortions are means an element. Fixed-rate bits are log2 L, each channel with the L that it needs; entropy is
that of each channel by itself, on held-out data; Gaussian R(D) and the Shannon lower bound are of held-out data too, at
the measured distortion and without memory: what tokens tell of each other is not in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitseam.codecs import EntropyStochastic
from bitseam.evals.planning import Coded, Sample, tokens
from bitseam.quant.planning import (
    crossing,
    differential_entropy,
    entropy,
    gaussian_rate,
    shannon_lower_bound,
    symbol_counts,
)

BANDS = 16  # of channels, in rows
_STEPS = (0.05, 1000.0)
_MEAN = ("variance", "sensitivity", "rate", "step", "clip", "predicted_bits", "measured_bits", "predicted_distortion")
_MEANS = (*_MEAN, "measured_distortion", "fixed_bits", "entropy", "gaussian_rate", "shannon_lower_bound")


def channels_of(
    coded: Coded, calibration: Sequence[Sample], held_out: Sequence[Sample], name: str
) -> dict[str, Tensor]:
    """All figures of a modality's features, each (C,)."""
    plan = coded.channels
    seen, held = tokens(calibration, "z", name), tokens(held_out, "z", name)
    (predicted, before, _), (measured, after, counts) = (_measured(coded, z) for z in (seen, held))
    return {
        "variance": plan.variance,
        "sensitivity": plan.sensitivity,
        "rate": plan.rate,
        "step": plan.step,
        "levels": plan.levels,
        "clip": plan.clip,
        "predicted_bits": predicted,
        "measured_bits": measured,
        "predicted_distortion": before,
        "measured_distortion": after,
        "fixed_bits": plan.levels.double().log2(),
        "entropy": entropy(counts),
        "gaussian_rate": gaussian_rate(held.double().var(0, correction=0), after),
        "shannon_lower_bound": shannon_lower_bound(differential_entropy(held), after),
    }


def _measured(coded: Coded, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bits under the codec's tables (C,), distortion (C,), and counts (C, L)."""
    levels, codec = coded.levels(z), coded.codec
    counts = symbol_counts(levels, codec.levels)
    cost = codec.symbol_bits()[codec.group_of(len(counts))]
    bits = (counts * torch.from_numpy(cost)).sum(1) / len(z)
    return bits, (z - coded.decoded(levels)).double().square().mean(0), counts


def rows_of(figures: Mapping[str, Tensor], modality: str, theta: float, bands: int = BANDS) -> list[dict[str, Any]]:
    """A row for each band of neighbouring channels: means, and the largest L."""
    count = len(figures["step"])
    edges = [-(-band * count // bands) for band in range(bands + 1)]
    return [
        {
            "modality": modality,
            "direction": "up",
            "group": f"{first}-{last - 1}",
            "water_level": theta,
            "levels": int(figures["levels"][first:last].max()),
            "dropped": int((figures["step"][first:last] == 0).sum()),
            **{name: float(figures[name][first:last].double().mean()) for name in _MEANS},
        }
        for first, last in pairwise(edges)
        if first < last
    ]


class DownPlan:
    """Gradients by the levels of a modality, coded by `entropy-stochastic` at so many bits an element, or as near to
    that as its steps come."""

    def __init__(self, name: str, unit: Tensor, seen: Sequence[Tensor], held: Sequence[Tensor], bits: float) -> None:
        """unit: (C,), what a level is worth; seen, held: gradients by z (..., C), of calibration and held-out data."""
        self.name = name
        self._seen, self._held = ([gradient * unit for gradient in gradients] for gradients in (seen, held))
        coarse, fine = (self._bits(step, self._seen)[0] for step in reversed(_STEPS))
        target = min(max(bits, coarse), fine)
        self.step = float(f"{crossing(lambda step: self._bits(step, self._seen)[0], target, *_STEPS, 2e-3):.4g}")

    def row(self) -> dict[str, Any]:
        """The codec shares one step among the channels of a message: one row. Its entropy is that within each table."""
        predicted, before, _ = self._bits(self.step, self._seen)
        measured, after, counts = self._bits(self.step, self._held)
        whole = torch.cat([g.reshape(-1) for g in self._held])
        variance, distortion = whole.double().square().mean(), torch.tensor(after)
        reach = int(np.abs(np.nonzero(counts)[1] - counts.shape[1] // 2).max())
        weights = torch.from_numpy(counts.sum(axis=1) / counts.sum())
        return {
            "modality": self.name,
            "direction": "down",
            "group": f"0-{self._held[0].shape[-1] - 1}",
            "step": self.step,
            "levels": 2 * reach + 1,
            "clip": self.step * reach,
            "variance": float(variance),
            "predicted_bits": predicted,
            "measured_bits": measured,
            "predicted_distortion": before,
            "measured_distortion": after,
            "fixed_bits": math.log2(2 * reach + 1),
            "entropy": float(entropy(torch.from_numpy(counts)) @ weights),
            "gaussian_rate": float(gaussian_rate(variance, distortion)),
            "shannon_lower_bound": float(shannon_lower_bound(differential_entropy(whole[:, None]), distortion)),
        }

    @staticmethod
    def _bits(step: float, gradients: Sequence[Tensor]) -> tuple[float, float, NDArray[np.int64]]:
        """Bits an element of real payloads, squared error, and how often each class has each multiple of the step."""
        codec, generator, size, error, counts = EntropyStochastic(step), torch.Generator().manual_seed(0), 0, 0.0, []
        for gradient in gradients:
            payload = codec.encode(gradient, generator)
            decoded = codec.decode(payload, gradient.shape)
            size += len(payload)
            error += float((decoded - gradient).double().square().sum())
            counts.append(codec.read(payload, gradient.shape).counts())
        count = sum(gradient.numel() for gradient in gradients)
        return 8 * size / count, error / count, np.sum(counts, axis=0)
