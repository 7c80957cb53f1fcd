"""The connector: from a tower's width to the language model's.

Shapes: M image tokens, m the merge factor, Dv tower width, D language width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def fresh_connector(patch_width: int, merge: int, hidden: int, width: int) -> nn.Sequential:
    """(..., M, Dv m^2) -> (..., M, D): whitening, then two layers with GELU between (arXiv 2310.03744)."""
    layers = (nn.Linear(patch_width * merge**2, hidden), nn.GELU(), nn.Linear(hidden, width))
    return nn.Sequential(Whiten(patch_width), *layers)


class Whiten(nn.Module):
    """Patch channels without correlation and of unit deviation, by statistics taken once before training: ZCA-cor
    whitening (Kessy, Lewin and Strimmer, arXiv 1512.00809), shrunk so that directions of no variance stay small.

    A few channels of a vision transformer vary far more than the rest (arXiv 2309.16588), and many vary together. Left
    so, they would fill every output of a fresh connector, and what the others tell would fall below a quantizer's step.
    """

    SHRINKAGE = 0.03  # of a unit variance
    mean: Tensor
    weight: Tensor

    def __init__(self, width: int) -> None:
        """width: of one patch; a token is one patch or several side by side."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("weight", torch.eye(width))

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Take the statistics of features (..., Dv m^2)."""
        patches = features.reshape(-1, len(self.mean))
        std, mean = torch.std_mean(patches, dim=0, correction=0)
        std = std.clamp_min(1e-4)
        unit = (patches - mean) / std
        variance, direction = torch.linalg.eigh(unit.T @ unit / len(unit))
        root = (direction * (variance.clamp_min(0) + self.SHRINKAGE).rsqrt()) @ direction.T
        self.mean.copy_(mean)
        self.weight.copy_(root / std[:, None])

    def forward(self, features: Tensor) -> Tensor:
        """(..., Dv m^2), same shape."""
        patches = features.unflatten(-1, (-1, len(self.mean)))
        return ((patches - self.mean) @ self.weight).flatten(-2)
