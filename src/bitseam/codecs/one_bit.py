"""One bit a value: the sign drawn at random so that it is right on average (FedBAT's operator, arXiv 2408.03215).

Payload: as that of `stochastic` at two levels, a scale for each block and a bit for each value.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.stochastic import Stochastic
from bitseam.errors import CodecError

SCALES = ("largest", "least-error")


@dataclass(frozen=True)
class OneBit(Codec):
    """x -> scale with probability (1 + x / scale) / 2, else -scale: E[decode(encode(x))] = x clipped at the scale.

    FedBAT trains the scale beside the weights; a codec has no trained state, so each block takes a closed form:
        "largest"      the largest magnitude: unbiased, and what `stochastic` makes of two levels
        "least-error"  where that training would end if it minimised the squared error: 0.647 deviations of a Gaussian.
                       Values beyond it are clipped, so it is biased; a tenth of the error of "largest" and less
    """

    codec_id: ClassVar[str] = "one-bit"
    block: int | str = "token"
    scale: str = "largest"

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise CodecError(f"scale must be one of {', '.join(SCALES)}, not {self.scale!r}")
        self._signs()  # refuses a wrong block

    @property
    def unbiased(self) -> bool:
        return self.scale == "largest"

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        return self._signs().payload_bytes(shape)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        if self.scale == "least-error":
            blocks = self._signs()._in_blocks(x)
            reach = _least_error_scale(blocks, x.numel())[:, None]
            x = blocks.clamp(-reach, reach).reshape(-1)[: x.numel()].reshape(x.shape)  # its largest is now the scale
        return self._signs().encode(x, generator)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        return self._signs().decode(payload, shape)

    def _signs(self) -> Stochastic:
        return Stochastic(2, self.block)


def _least_error_scale(blocks: Tensor, count: int) -> Tensor:
    """Scale (blocks,) of least expected squared error; of (blocks, N) values the first `count` are real, the rest zero.

    A value within the scale a costs a^2 - x^2, one beyond it (|x| - a)^2: the sum is least where N a is the sum of the
    magnitudes beyond a. With magnitudes falling and their running sums rising, that is where the two cross.
    """
    size = blocks.shape[1]
    real = torch.full((len(blocks),), float(size), dtype=torch.float64)
    real[-1:] -= blocks.numel() - count
    falling = blocks.abs().double().sort(dim=1, descending=True).values
    return torch.minimum(falling, falling.cumsum(dim=1) / real[:, None]).amax(dim=1).float()
