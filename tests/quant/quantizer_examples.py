"""A quantizer of each kind, calibrated to features whose channels are unlike."""

import torch

from bitseam.quant import RDFSQ, RateFSQ, StepFSQ, TensorRDFSQ

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
