"""RD-FSQ (arXiv 2511.23402) with a step of its own for each channel, as `bitseam plan` chooses them.

x (..., D) -> z = W x + b (..., C) -> normalise -> divide by the step -> nearest of L levels one apart
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitseam.errors import CodecError
from bitseam.quant.base import Quantized
from bitseam.quant.finite import require_finite
from bitseam.quant.rd_fsq import RDFSQ, snap

LEAST_STEP, MOST_STEP = 1e-3, 1e3
# What a level of a dropped channel is worth, in deviations: it is always 0, and its gradient next to nothing.
DROPPED = 1e-6


class StepFSQ(RDFSQ):
    """Levels cross as whole steps, from -(L - 1) / 2 to (L - 1) / 2, so that one codec serves all channels; the
    server's projection takes up the steps. A channel's rate depends on its step, not on L where entropy is coded.

    Steps are in deviations: with the running statistics below them, rates stay while the features' scale moves. Since
    a step is chosen in proportion to 1 / root mean square gradient, gradients by the levels are alike in all channels.
    A step of 0 drops the channel: its mean alone is known to the server. The distortion is RD-FSQ's, in steps.
    """

    step: Tensor

    def __init__(
        self, width: int, channels: int, levels: int, steps: Sequence[float] = (), momentum: float = 0.1
    ) -> None:
        """steps: (C,), none for 1 everywhere. Raises CodecError for what is out of range."""
        super().__init__(width, channels, levels, (levels - 1) / 2, momentum)
        if steps and len(steps) != channels:
            raise CodecError(f"{len(steps)} steps for {channels} channels")
        for channel, step in enumerate(steps):
            if step != 0 and not LEAST_STEP <= step <= MOST_STEP:
                raise CodecError(
                    f"the step of channel {channel} must be 0 or from {LEAST_STEP} to {MOST_STEP}, not {step}"
                )
        self.register_buffer("step", torch.tensor(steps or [1.0] * channels, dtype=torch.float32))

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (C,) and what one unit of the levels is worth (C,): the step times the deviation."""
        mean, std = super().statistics()
        return mean, std * self.step.clamp_min(DROPPED)

    def _quantize(self, x: Tensor) -> Quantized:
        unit = self.normalise(self._projected(x)) * self.step.reciprocal().nan_to_num(posinf=0.0)
        require_finite(unit, "features in steps")
        return snap(unit, self.levels, self.clip)
