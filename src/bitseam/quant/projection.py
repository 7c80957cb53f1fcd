"""The server's part of the seam: from levels back to the width of the language model."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bitseam.errors import CodecError
from bitseam.quant.finite import require_finite, require_usable
from bitseam.quant.principal import ONE
from bitseam.quant.rd_fsq import semi_orthogonal


class LevelProjection(nn.Linear):
    """Levels (..., C) -> features (..., D): W (std * levels + mean) + b, with the client's statistics of each channel.

    Starts as the inverse of a fresh RDFSQ, W = P^T semi-orthogonal. Undoing the normalisation lets the scale of a
    channel mean something, as it does where features cross as floats: a connector that makes a feature larger makes it
    larger for the language model too.
    """

    mean: Tensor
    std: Tensor
    rotation: Tensor | None

    def __init__(self, channels: int, width: int, rotated: bool = False) -> None:
        """rotated: levels are of principal components, which a rotation turns back into channels."""
        super().__init__(channels, width)
        self.register_buffer("rotation", ONE * torch.eye(channels, dtype=torch.int8) if rotated else None)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        with torch.no_grad():
            self.weight.copy_(semi_orthogonal(channels, width).T)
            self.bias.zero_()

    @torch.no_grad()
    def calibrate(self, mean: Tensor, std: Tensor) -> None:
        """Take the statistics (C,) that the client normalises by from now on.

        Raises CodecError for another shape, a deviation that is not positive or a number over `LARGEST`,
        NonFiniteError for NaN or infinity.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.in_features,):
                raise CodecError(f"statistics: {name} has shape {tuple(value.shape)}, not ({self.in_features},)")
            require_finite(value, f"statistics: {name}")
            require_usable(value, f"statistics: {name}")
        if not (std > 0).all():
            raise CodecError("statistics: std must be positive in every channel")
        self.mean.copy_(mean)
        self.std.copy_(std)

    @torch.no_grad()
    def rotate(self, rotation: Tensor) -> None:
        """Take the directions, int8 (C * C,) or (C, C), that the client's levels are along from now on.

        Raises CodecError where none are due, or for another size.
        """
        if self.rotation is None:
            raise CodecError("statistics: a rotation for a quantizer that has none")
        if rotation.numel() != self.rotation.numel():
            raise CodecError(f"statistics: a rotation of {rotation.numel()} numbers, not {self.rotation.numel()}")
        self.rotation.copy_(rotation.view_as(self.rotation))

    def forward(self, levels: Tensor) -> Tensor:
        """Levels (..., C) -> (..., D)."""
        spread = levels * self.std
        if self.rotation is not None:
            spread = linear(spread, self.rotation.float() / ONE)
        return linear(spread + self.mean, self.weight, self.bias)
