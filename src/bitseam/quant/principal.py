"""Running principal directions of the channels: the Karhunen-Loeve transform, renewed when it has drifted enough."""

import torch
from torch import Tensor

from bitseam.quant.statistics import VARIANCE_FLOOR, RunningStatistics

# int8: an entry is off by 1 / 440 at most, and a direction leaks some 0.0005 of its energy into all others together.
ONE = 127


class PrincipalDirections(RunningStatistics):
    """z (..., C) -> its principal components in units of the channels' root mean square deviation, strongest first.

    `mean` (C,), `scale` () and `rotation` int8 (C, C), whose columns / 127 are the directions, are those in use, which
    the other side must know. In training they follow running ones: mean and scale once these have drifted off by
    `DRIFT` deviations, the rotation once it has cost as many bits as sending another one takes (the bound of ski
    rental: at the worst twice the bits of knowing beforehand). A batch is counted after it was transformed, so that no
    code depends on a batch neighbour; in eval nothing moves. Autograd sees constants.
    """

    WHAT = "principal directions"
    DRIFT = 0.1
    MOMENTUM = 0.05  # of a micro-batch
    CHECK_EVERY = 8  # micro-batches: an eigendecomposition of C x C takes time
    mean: Tensor
    scale: Tensor
    rotation: Tensor
    running_mean: Tensor
    running_covariance: Tensor
    lost: Tensor
    unchecked: Tensor

    def __init__(self, channels: int, step: float) -> None:
        """step: of the levels made of the components, in deviations; what drifts is judged by it."""
        super().__init__()
        self.step = step
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("rotation", ONE * torch.eye(channels, dtype=torch.int8))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_covariance", torch.eye(channels))
        self.register_buffer("lost", torch.zeros((), dtype=torch.float64))  # bits
        self.register_buffer("unchecked", torch.zeros(2, dtype=torch.int64))  # micro-batches and tokens

    def forward(self, z: Tensor) -> Tensor:
        """Components (..., C). Raises CodecError before the first `calibrate`."""
        self.require_calibrated()
        if self.training:
            self._follow()
        components = (z - self.mean) @ self.directions() / self.scale.clone()  # autograd keeps the copy
        if self.training:
            self.count(z.detach())
        return components

    def directions(self) -> Tensor:
        """(C, C), a direction in each column: what `rotation` says, not orthogonal to the last bit."""
        return self.rotation.float() / ONE

    def _running_scale(self) -> Tensor:
        return self.running_covariance.diagonal().mean().clamp_min(VARIANCE_FLOOR).sqrt()

    def _principal(self) -> Tensor:
        return torch.linalg.eigh(self.running_covariance)[1].flip(1)

    def _use_scale(self) -> None:
        self.mean.copy_(self.running_mean)
        self.scale.copy_(self._running_scale())

    def _use_rotation(self, directions: Tensor) -> None:
        self.rotation.copy_((ONE * directions).round())
        self.lost.zero_()
        self.unchecked.zero_()

    @torch.no_grad()
    def _follow(self) -> None:
        if int(self.unchecked[0]) >= self.CHECK_EVERY:
            better = self._principal()
            saved = self._bits(self.directions()) - self._bits(better)  # a token
            self.lost.add_(saved.double() * self.unchecked[1]).clamp_min_(0)
            self.unchecked.zero_()
            if float(self.lost) > 8 * self.rotation.numel():
                self._use_rotation(better)
                self._use_scale()
        off = torch.stack([*(self.running_mean - self.mean), self._running_scale() - self.scale]) / self.scale
        if float(off[:-1].square().mean().sqrt()) > self.DRIFT or float(off[-1].abs()) > self.DRIFT:
            self._use_scale()

    def _bits(self, directions: Tensor) -> Tensor:
        """About what a token (C,) takes along these directions: Gaussian R(D) with one more variance of the error."""
        variance = ((self.running_covariance @ directions) * directions).sum(0) / self.running_covariance.trace()
        error = self.step**2 / 12 / len(variance)
        return (1 + variance / error).log2().sum() / 2

    def _take(self, tokens: Tensor) -> None:
        self.running_mean.copy_(tokens.mean(0))
        off = tokens - self.running_mean
        self.running_covariance.copy_(off.T @ off / len(tokens))
        self._use_scale()
        self._use_rotation(self._principal())

    def _count(self, tokens: Tensor) -> None:
        off = tokens - self.running_mean
        shift, keep = off.mean(0), 1 - self.MOMENTUM
        centred = off - shift
        # Covariance of the mixture of old and new (Finch, "Incremental calculation of weighted mean and variance",
        # 2009).
        self.running_covariance.add_(self.MOMENTUM * torch.outer(shift, shift)).mul_(keep)
        self.running_covariance.addmm_(centred.T, centred, alpha=self.MOMENTUM / len(tokens))
        self.running_mean.add_(self.MOMENTUM * shift)
        self.unchecked.add_(torch.tensor([1, len(tokens)], device=self.unchecked.device))
