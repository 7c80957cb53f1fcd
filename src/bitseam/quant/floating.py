"""Rounding to a floating-point format, as a quantizer: the baselines fp16 and bf16, and fp32, the identity."""

import torch
from torch import Tensor

from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant.base import Quantized, Quantizer, straight_through

FORMATS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite x (...) -> (...) in `dtype`, nearest even. Raises NonFiniteError naming the first value that overflows."""
    rounded = x.to(dtype)
    if dtype == torch.float32 or rounded.numel() == 0 or torch.isfinite(rounded.abs().amax()):
        return rounded
    first = tuple(torch.isinf(rounded).nonzero()[0].tolist())
    raise NonFiniteError(
        f"value {x[first].item():g} at index {first} overflows {FORMATS[dtype]}, whose largest is "
        f"{torch.finfo(dtype).max:g}; use a format of wider range"
    )


class Float(Quantizer):
    """Levels are the features rounded to `dtype` (float32, float16 or bfloat16), and no distortion is charged."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        """Raises CodecError for another dtype."""
        super().__init__(width, width)
        if dtype not in FORMATS:
            raise CodecError(f"no float format {dtype}; there are {', '.join(FORMATS.values())}")
        self.dtype = dtype

    def _quantize(self, x: Tensor) -> Quantized:
        levels = x if self.dtype == torch.float32 else straight_through(x, round_to(x.detach(), self.dtype).float())
        return Quantized(levels, x.new_zeros(()))
