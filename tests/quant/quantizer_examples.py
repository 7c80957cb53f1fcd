"""A quantizer of each kind, calibrated to features whose channels are unlike."""

from collections.abc import Callable

import torch

from bitseam.quant import RDFSQ, Float, LearnedClipFSQ, Quantizer, RateFSQ, StepFSQ, TanhFSQ, TensorRDFSQ

WIDTH = 8


def features(seed: int = 0, batch: int = 3, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 5, width)
    return torch.randn(batch, 16, width, generator=generator) * spread + spread.flip(0)


def rd_fsq(channels: int = WIDTH, levels: int = 4, clip: float = 1.49, kind: type[RDFSQ] = RDFSQ) -> RDFSQ:
    quantizer = kind(WIDTH, channels, levels, clip)
    quantizer.calibrate(features(100))
    return quantizer


def tensor_rd_fsq() -> TensorRDFSQ:
    torch.manual_seed(0)
    return TensorRDFSQ(WIDTH, WIDTH, 4)


def step_fsq() -> StepFSQ:
    quantizer = StepFSQ(WIDTH, WIDTH, 5, (0.0, *(0.5, 1.0) * 3, 2.0))
    quantizer.calibrate(features(100))
    return quantizer


def rate_fsq() -> RateFSQ:
    quantizer = RateFSQ(WIDTH, 6, 9, 4.0)
    quantizer.calibrate(features(100))
    quantizer.use(4.0, torch.arange(-4.0, 5.0).square().expand(6, 1, 9))
    return quantizer


QUANTIZERS: list[Callable[[], Quantizer]] = [
    rd_fsq,
    lambda: rd_fsq(channels=5, levels=3),
    tensor_rd_fsq,
    lambda: rd_fsq(channels=6, kind=TanhFSQ),
    lambda: rd_fsq(levels=3, kind=LearnedClipFSQ),
    lambda: step_fsq(),
    rate_fsq,
    lambda: Float(WIDTH, torch.float32),
    lambda: Float(WIDTH, torch.float16),
    lambda: Float(WIDTH, torch.bfloat16),
]
NAMES = ["rd", "rd-narrow", "rd-tensor", "tanh", "learned-clip", "step", "rate", "fp32", "fp16", "bf16"]
