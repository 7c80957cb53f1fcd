"""Contexts: what the levels of neighbouring tokens say of a level, before it is known.

Tokens of an image stand in rows, in raster order: T of them in sqrt(T) rows where that is a whole number, else in one.
A level's neighbours are those of the left and of the upper token, in the same channel of the same image. Its context is
their mean, or the one that there is, as whole levels above the middle, rounded away from it; contexts are cut off at
both ends alike, and numbered from the lowest. Where there is no neighbour, it is the middle one.
"""

import math

import torch
from torch import Tensor

from bitseam.errors import CodecError

MAX_CONTEXTS = 15


def check_contexts(contexts: int) -> None:
    """Raise CodecError unless contexts is an odd number from 1 to 15."""
    if type(contexts) is not int or not 1 <= contexts <= MAX_CONTEXTS or contexts % 2 == 0:
        raise CodecError(f"contexts must be an odd number from 1 to {MAX_CONTEXTS}, not {contexts!r}")


def wavefronts(tokens: int) -> list[Tensor]:
    """The positions of T tokens, each after its neighbours: those of a list element need none of the same one."""
    side = _row_length(tokens)
    places = torch.arange(tokens)
    fronts = places // side + places % side
    return list(places[fronts.argsort(stable=True)].split(fronts.bincount().tolist()))


def contexts_at(indices: Tensor, positions: Tensor, levels: int, contexts: int) -> Tensor:
    """The contexts of levels at positions (P,), given the indices of their neighbours: (I, T, C) -> (I, P, C) int32.

    Only neighbours are read of indices.
    """
    side = _row_length(indices.shape[1])
    left, upper = positions % side > 0, positions >= side
    total = torch.zeros((), dtype=torch.int32, device=indices.device)
    for there, back in ((left, 1), (upper, side)):
        weight = (there * (2 - (left & upper).int())).int().to(indices.device)[:, None]
        near = indices[:, (positions - back).clamp_min(0).to(indices.device)].int()
        total = total + weight * (2 * near - (levels - 1))  # in quarters of a level
    most = contexts // 2
    away = total.sign() * torch.div(total.abs() + 2, 4, rounding_mode="floor")
    return away.clamp(-most, most) + most


def contexts_of(indices: Tensor, levels: int, contexts: int) -> Tensor:
    """The context of each level: indices (..., C) -> the same shape, int32.

    Only (images, T, C) have neighbours: tokens in other shapes, as those of text, are in the middle context.
    """
    if indices.ndim != 3 or contexts == 1:
        return torch.full(indices.shape, contexts // 2, dtype=torch.int32, device=indices.device)
    return contexts_at(indices, torch.arange(indices.shape[1]), levels, contexts)


def _row_length(tokens: int) -> int:
    side = math.isqrt(tokens)
    return max(side if side * side == tokens else tokens, 1)
