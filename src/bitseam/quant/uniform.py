"""L evenly spaced levels between -clip and clip.

`clip` is the outermost *level*, not the outermost bin edge: levels are a step of 2 clip / (L - 1) apart and bin edges
lie midway, so the granular range ends half a step beyond the clip. For a unit Gaussian the best clips are 0.80, 1.22,
1.49, 2.05 and 2.51 for 2, 3, 4, 8 and 16 levels, with a mean squared error of .363, .190, .119, .0374 and .0115 (Max,
"Quantizing for minimum distortion", 1960, table II: uniform quantizers).
"""

import math

import torch
from torch import Tensor

from bitseam.errors import CodecError

MAX_LEVELS = 65536


def check_grid(levels: int, clip: float) -> None:
    """Raise CodecError unless 2 <= levels <= 65536 and the clip is a positive number."""
    if type(levels) is not int or not 2 <= levels <= MAX_LEVELS:
        raise CodecError(f"levels must be a whole number from 2 to {MAX_LEVELS}, not {levels!r}")
    if type(clip) not in (int, float) or not math.isfinite(clip) or not 1e-6 <= clip <= 1e6:
        raise CodecError(f"clip must be a number from 1e-6 to 1e6, not {clip!r}")


def level_values(levels: int, clip: float) -> Tensor:
    """The levels, ascending: float32 (L,) on the CPU, symmetric about zero to the last bit."""
    steps = torch.arange(1 - levels, levels, 2, dtype=torch.float64)
    return (steps * (clip / (levels - 1))).float()


def index_dtype(levels: int) -> torch.dtype:
    """The smallest integer type, of those that torch computes with, for indices of so many levels."""
    return torch.uint8 if levels <= 256 else torch.int32


def to_indices(z: Tensor, levels: int, clip: float) -> Tensor:
    """The nearest level of each value: (...) floats -> (...) uint8, or int32 above 256 levels.

    Values beyond the clip take the outermost level; a value midway between two levels takes the upper one. Every level
    is its own nearest (float32 tells 65536 of them apart). NaN is the caller's to refuse.
    """
    return nearest(z, scale_to_steps(levels, clip), levels)


def scale_to_steps(levels: int, clip: float) -> float:
    """What a value is multiplied by to be counted in steps between levels."""
    return (levels - 1) / (2 * clip)


def nearest(z: Tensor, scale: float | Tensor, levels: int) -> Tensor:
    """`to_indices` by the scale of `scale_to_steps`, a number or float32 () on the device of z.

    The same bits on every device, compiled or not: one product and one sum in float32, each rounded, which no compiler
    may contract into one rounding, as the clamp stands between them.
    """
    scaled = (z.float() * scale).clamp_(-levels / 2, levels / 2 - 1)
    # Adding a half and truncating is rounding with ties upward; after the clamp nothing is negative.
    return scaled.add_(levels / 2).to(index_dtype(levels))


def from_indices(indices: Tensor, levels: int, clip: float) -> Tensor:
    """The level of each index: (...) integers in [0, L) -> (...) float32, by table: every side gets the same bits."""
    table = level_values(levels, clip).to(indices.device)
    return table.index_select(0, indices.reshape(-1).int()).view(indices.shape)
