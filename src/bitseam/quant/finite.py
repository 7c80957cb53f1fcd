"""Checks that are used wherever a tensor meets a quantizer or a codec."""

import torch
from torch import Tensor

from bitseam.errors import CodecError, NonFiniteError

LARGEST = 65504.0  # of float16: sums of squares of such features are finite in float32


def require_finite(x: Tensor, name: str) -> None:
    """Refuse NaN and infinity in a tensor of any shape.

    Raises NonFiniteError, which says how many there are and where the first one is.
    """
    if x.detach().sum().isfinite():  # one quick pass: NaN and infinity spoil a sum, and so may finite values, seldom
        return
    bad = ~torch.isfinite(x.detach())
    if not bad.any():
        return
    first = tuple(bad.nonzero()[0].tolist())
    raise NonFiniteError(
        f"{name}: {int(bad.sum())} of {x.numel()} values are NaN or infinite, the first ({x[first].item()}) at index "
        f"{first}; look at what computed it"
    )


def require_usable(value: Tensor, what: str) -> None:
    """Refuse features, or statistics of features, that no model computes with: over LARGEST. Raises CodecError."""
    largest = float(value.abs().amax()) if value.numel() else 0.0
    if largest > LARGEST:
        raise CodecError(f"{what}: {largest:g} is too large to compute with; the most is {LARGEST:g}")
