"""One check, used wherever a tensor meets a quantizer or a codec."""

import torch
from torch import Tensor

from bitseam.errors import NonFiniteError


def require_finite(x: Tensor, name: str) -> None:
    """Refuse NaN and infinity in a tensor of any shape.

    Raises NonFiniteError, which says how many there are and where the first one is.
    """
    if x.numel() == 0:
        return
    low, high = torch.aminmax(x.detach())  # one pass without a mask: NaN and infinity both reach an end
    if torch.isfinite(low) and torch.isfinite(high):
        return
    bad = ~torch.isfinite(x.detach())
    first = tuple(bad.nonzero()[0].tolist())
    raise NonFiniteError(
        f"{name}: {int(bad.sum())} of {x.numel()} values are NaN or infinite, the first ({x[first].item()}) at index "
        f"{first}; look at what computed it"
    )
