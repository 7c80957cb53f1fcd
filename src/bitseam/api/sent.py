"""What crossed, beside what fp16 would have taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Sent:
    """Bytes that crossed at this end: lengths of whole messages, features up and gradients down.

    fp16_up, fp16_down: of the same features and gradients at two bytes a number of the whole width, and nothing around.
    """

    up: int = 0
    down: int = 0
    fp16_up: int = 0
    fp16_down: int = 0

    @property
    def total(self) -> int:
        """Bytes both ways."""
        return self.up + self.down

    @property
    def fp16(self) -> int:
        """Bytes both ways, had it been fp16."""
        return self.fp16_up + self.fp16_down

    def count_up(self, message: bytes, shape: Sequence[int]) -> None:
        """A message of features of this shape (..., D)."""
        self.up += len(message)
        self.fp16_up += 2 * math.prod(shape)

    def count_down(self, message: bytes, shape: Sequence[int]) -> None:
        """A message of the gradient of such features."""
        self.down += len(message)
        self.fp16_down += 2 * math.prod(shape)

    def __str__(self) -> str:
        return f"{self.up:,} bytes up and {self.down:,} down, of {self.fp16_up:,} and {self.fp16_down:,} as fp16"
