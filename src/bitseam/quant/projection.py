"""The server's part of the seam: from levels back to the width of the language model."""

import torch
from torch import Tensor, nn

from bitseam.errors import CodecError
from bitseam.quant.finite import require_finite
from bitseam.quant.rd_fsq import semi_orthogonal


class LevelProjection(nn.Linear):
    """Levels (..., C) -> features (..., D)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width)

    @torch.no_grad()
    def calibrate(self, mean: Tensor, std: Tensor) -> None:
        """Undo a fresh RDFSQ's normalisation and projection: features ~ P^T (std * levels + mean), P semi-orthogonal.

        `mean` and `std` are (C,), as the client sent them. Raises CodecError for another shape or a deviation that is
        not positive, NonFiniteError for NaN or infinity.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.in_features,):
                raise CodecError(f"statistics: {name} has shape {tuple(value.shape)}, not ({self.in_features},)")
            require_finite(value, f"statistics: {name}")
        if not (std > 0).all():
            raise CodecError("statistics: std must be positive in every channel")
        back = semi_orthogonal(self.in_features, self.out_features).T
        self.weight.copy_(back * std.to(back))
        self.bias.copy_(back @ mean.to(back))
