"""Running statistics of each channel."""

import torch
from torch import Tensor, nn

from bitseam.errors import CodecError

# A channel whose deviation is under 1e-4 is dead: dividing by less would blow rounding noise up to full-scale codes.
VARIANCE_FLOOR = 1e-8


class ChannelStatistics(nn.Module):
    """Normalise z (..., C) to zero mean and unit deviation per channel, by statistics of *earlier* batches.

    In training a batch is normalised first and counted after, so that no code depends on a batch neighbour; in eval and
    after `freeze` nothing is counted. Autograd sees constants. Both flags are buffers: a checkpoint remembers them.
    """

    mean: Tensor
    var: Tensor
    calibrated: Tensor
    frozen: Tensor

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise CodecError(f"momentum of the channel statistics must be from 0 to 1, not {momentum}")
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.register_buffer("calibrated", torch.tensor(False))
        self.register_buffer("frozen", torch.tensor(False))

    @property
    def std(self) -> Tensor:
        """Deviation (C,), never under the floor for dead channels."""
        return self.var.clamp_min(VARIANCE_FLOOR).sqrt()

    def forward(self, z: Tensor) -> Tensor:
        """Normalised z, same shape. Raises CodecError before the first `calibrate`."""
        self.require_calibrated()
        normalised = (z - self.mean) / self.std
        if self.training and not self.frozen:
            self._count(z.detach())
        return normalised

    @torch.no_grad()
    def calibrate(self, z: Tensor) -> None:
        """Forget everything and take the statistics of z (..., C). Raises CodecError under two tokens."""
        tokens = z.reshape(-1, z.shape[-1])
        if len(tokens) < 2:
            raise CodecError(f"calibration needs the features of two tokens at least, not {len(tokens)}")
        var, mean = torch.var_mean(tokens, dim=0, correction=0)
        self.mean.copy_(mean)
        self.var.copy_(var)
        self.calibrated.fill_(True)

    def freeze(self) -> None:
        """Stop counting, in training too."""
        self.frozen.fill_(True)

    def require_calibrated(self) -> None:
        """Raise CodecError before the first `calibrate`."""
        if not self.calibrated:
            raise CodecError("the quantizer's channel statistics are not calibrated: call calibrate(features) first")

    @torch.no_grad()
    def _count(self, z: Tensor) -> None:
        tokens = z.reshape(-1, z.shape[-1])
        if len(tokens) == 0:
            return
        var, mean = torch.var_mean(tokens, dim=0, correction=0)
        # Variance of the mixture of old and new (Finch, "Incremental calculation of weighted mean and variance", 2009).
        shift = mean - self.mean
        self.var.add_(self.momentum * shift.square()).mul_(1 - self.momentum).add_(self.momentum * var)
        self.mean.add_(self.momentum * shift)
