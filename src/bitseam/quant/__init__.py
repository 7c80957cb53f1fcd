"""Differentiable quantizers, tensor -> tensor.

Shapes: B batch, M image tokens, D feature width, C code channels, L levels; leading dimensions are free: (..., D).
"""

from bitseam.quant.base import Quantized, Quantizer
from bitseam.quant.floating import Float
from bitseam.quant.projection import LevelProjection
from bitseam.quant.rd_fsq import RDFSQ, TensorRDFSQ, semi_orthogonal
from bitseam.quant.statistics import ChannelStatistics

__all__ = [
    "RDFSQ",
    "ChannelStatistics",
    "Float",
    "LevelProjection",
    "Quantized",
    "Quantizer",
    "TensorRDFSQ",
    "semi_orthogonal",
]
