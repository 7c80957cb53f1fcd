"""Differentiable quantizers, tensor -> tensor.

Shapes: B batch, M image tokens, D feature width, C code channels, L levels; leading dimensions are free: (..., D).
"""

from bitseam.quant.base import Quantized, Quantizer
from bitseam.quant.learned_clip import LearnedClipFSQ
from bitseam.quant.projection import LevelProjection
from bitseam.quant.rate_fsq import RateFSQ
from bitseam.quant.rd_fsq import RDFSQ, TensorRDFSQ, semi_orthogonal
from bitseam.quant.statistics import ChannelStatistics
from bitseam.quant.step_fsq import StepFSQ
from bitseam.quant.tanh_fsq import TanhFSQ

__all__ = [
    "RDFSQ",
    "ChannelStatistics",
    "LearnedClipFSQ",
    "LevelProjection",
    "Quantized",
    "Quantizer",
    "RateFSQ",
    "StepFSQ",
    "TanhFSQ",
    "TensorRDFSQ",
    "semi_orthogonal",
]
