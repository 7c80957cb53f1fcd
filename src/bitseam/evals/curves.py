"""Loss curves as paths of SVG, on a logarithmic axis, where the end of a training is as plain as its beginning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

_BELOW = 1.5  # the axis ends so many times under the lowest running mean; single steps may lie lower


def chart(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Curves in a box of 1000 x 1000: paths, and ticks as (label, share of the axis).

    curves: name -> its `step` and `loss`, in nats an answer token. The axis of losses holds every step's loss upwards.
    """
    smooth = {name: _running_mean(curve["loss"]) for name, curve in curves.items()}
    last = max(max(curve["step"]) for curve in curves.values())
    low = max(min(line.min() for line in smooth.values()) / _BELOW, 1e-9)
    high = max(1.1 * max(max(curve["loss"]) for curve in curves.values()), 2 * low)

    def height(losses: Sequence[float] | np.ndarray) -> np.ndarray:
        return np.log(np.maximum(losses, low / 10) / low) / math.log(high / low)

    lines = {
        name: {
            "raw": _path(np.asarray(curve["step"]) / last, height(curve["loss"])),
            "smooth": _path(np.asarray(curve["step"]) / last, height(smooth[name])),
            "final": smooth[name][-1],
        }
        for name, curve in curves.items()
    }
    steps = [(f"{tick:g}", tick / last) for tick in _round_numbers(0, last)]
    losses = [(f"{tick:g}", float(height(np.array([tick]))[0])) for tick in _log_ticks(low, high)]
    return {"lines": lines, "x": steps, "y": losses}


def _running_mean(values: Sequence[float]) -> np.ndarray:
    """Centred, over a fortieth of the run; shorter at the ends."""
    window = np.ones(len(values) // 40 + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{1000 * a:.1f},{1000 * (1 - b):.1f}" for a, b in zip(x, y, strict=True))


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or these alone on a long axis; round numbers where they are fewer than three."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
    return ticks if len(ticks) > 2 else _round_numbers(low, high)


def _round_numbers(low: float, high: float) -> list[float]:
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]
