"""Finite scalar quantization (arXiv 2309.15505): bounded by tanh, rounded to L uniform levels, straight-through."""

import torch
from torch import Tensor

from bitseam.quant.base import Quantized
from bitseam.quant.rd_fsq import RDFSQ, snap


class TanhFSQ(RDFSQ):
    """x (..., D) -> z = W x + b (..., C) -> normalise -> clip tanh(z / clip) -> nearest of L uniform levels.

    The gradient is that of tanh: it fades where RD-FSQ's clip cuts it off. Near zero tanh(z) is z, so this starts near
    the identity as RD-FSQ does. Two departures from the paper: channels are normalised by running statistics, for
    features without a known scale; and the levels lie symmetric about zero for an even L too, without its half-step
    shift.
    """

    def _quantize(self, x: Tensor) -> Quantized:
        bounded = self.clip * torch.tanh(self.normalise(self._projected(x)) / self.clip)
        return snap(bounded, self.levels, self.clip)
