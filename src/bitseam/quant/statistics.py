"""Running statistics of z (..., C), and those of each channel."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from bitseam.errors import CodecError

# A channel whose deviation is under 1e-4 is dead: dividing by less would blow rounding noise up to full-scale codes.
VARIANCE_FLOOR = 1e-8


class RunningStatistics(nn.Module, ABC):
    """What is known of z (..., C) from a calibration and, in training, from every batch since.

    All is in buffers: a checkpoint remembers it.
    """

    WHAT: ClassVar[str]  # these statistics, in an error
    calibrated: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calibrated", torch.tensor(False))

    @torch.no_grad()
    def calibrate(self, z: Tensor) -> None:
        """Forget everything and take the statistics of z (..., C). Raises CodecError under two tokens."""
        tokens = z.reshape(-1, z.shape[-1])
        if len(tokens) < 2:
            raise CodecError(f"calibration needs the features of two tokens at least, not {len(tokens)}")
        self._take(tokens)
        self.calibrated.fill_(True)

    def require_calibrated(self) -> None:
        """Raise CodecError before the first `calibrate`."""
        if not self.calibrated:
            raise CodecError(f"the quantizer's {self.WHAT} are not calibrated: call calibrate(features) first")

    @torch.no_grad()
    def count(self, z: Tensor) -> None:
        """Let the running statistics follow z (..., C), which may have no tokens."""
        tokens = z.reshape(-1, z.shape[-1])
        if len(tokens):
            self._count(tokens)

    @abstractmethod
    def _take(self, tokens: Tensor) -> None:
        """Begin with tokens (T, C), two at least."""

    @abstractmethod
    def _count(self, tokens: Tensor) -> None:
        """Go on with tokens (T, C), one at least."""


class ChannelStatistics(RunningStatistics):
    """Normalise z (..., C) to zero mean and unit deviation per channel, by statistics of *earlier* batches.

    `mean` and `std` (C,) are those in use, which the other side must know. In training they follow the running ones
    only once these have drifted off by `DRIFT` deviations (root mean square over channels), so that they are sent
    seldom. A batch is normalised first and counted after, so that no code depends on a batch neighbour; in eval and
    after `freeze` nothing moves. Autograd sees constants.
    """

    WHAT = "channel statistics"
    DRIFT = 0.05
    mean: Tensor
    std: Tensor
    running_mean: Tensor
    running_var: Tensor
    frozen: Tensor

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise CodecError(f"momentum of the channel statistics must be from 0 to 1, not {momentum}")
        self.momentum = momentum
        for name in ("mean", "running_mean"):
            self.register_buffer(name, torch.zeros(channels))
        for name in ("std", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        self.register_buffer("frozen", torch.tensor(False))

    def forward(self, z: Tensor) -> Tensor:
        """Normalised z, same shape. Raises CodecError before the first `calibrate`."""
        self.require_calibrated()
        counting = self.training and not self.frozen
        if counting and self._drift() > self.DRIFT:
            self._use_running()
        normalised = (z - self.mean) / self.std.clone()  # autograd keeps the copy, while statistics move on
        if counting:
            self.count(z.detach())
        return normalised

    def freeze(self) -> None:
        """Stop counting, in training too."""
        self.frozen.fill_(True)

    def _running_std(self) -> Tensor:
        return self.running_var.clamp_min(VARIANCE_FLOOR).sqrt()

    def _use_running(self) -> None:
        self.mean.copy_(self.running_mean)
        self.std.copy_(self._running_std())

    def _drift(self) -> float:
        """How far the running statistics are from those in use, in deviations."""
        off = torch.maximum((self.running_mean - self.mean).abs(), (self._running_std() - self.std).abs()) / self.std
        return float(off.square().mean().sqrt())

    def _take(self, tokens: Tensor) -> None:
        var, mean = torch.var_mean(tokens, dim=0, correction=0)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self._use_running()

    def _count(self, tokens: Tensor) -> None:
        var, mean = torch.var_mean(tokens, dim=0, correction=0)
        # Variance of the mixture of old and new (Finch, "Incremental calculation of weighted mean and variance", 2009).
        shift = mean - self.running_mean
        self.running_var.add_(self.momentum * shift.square()).mul_(1 - self.momentum).add_(self.momentum * var)
        self.running_mean.add_(self.momentum * shift)
