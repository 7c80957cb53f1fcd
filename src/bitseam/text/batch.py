"""Ragged batches of token ids.

Shapes: B sequences about I images, N tokens of all sequences together (no padding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextBatch:
    """ids (N,) int64, 0 where they are not known to this side; lengths (B,); image_at (B,): tokens before the image;
    image (B,): which of the I images, ascending; answers (N,) bool; samples (I,): numbers by which the images are known
    when they come again, or none."""

    ids: Tensor
    lengths: Tensor
    image_at: Tensor
    image: Tensor
    answers: Tensor
    samples: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @staticmethod
    def join(batches: Sequence[TextBatch]) -> TextBatch:
        """One batch after the other, the images too."""
        first = torch.tensor([0, *(int(batch.image[-1]) + 1 for batch in batches[:-1])]).cumsum(0)
        joined = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in vars(batches[0])}
        joined["image"] = torch.cat([batch.image + at for batch, at in zip(batches, first, strict=True)])
        return TextBatch(**joined)
