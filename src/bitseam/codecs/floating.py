"""Floating-point formats, little-endian. "fp32" is the identity codec."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.errors import NonFiniteError


class _Floating(Codec):
    dtype: ClassVar[torch.dtype]

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * self.dtype.itemsize

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        return little_endian(self._rounded(x))

    def _rounded(self, x: Tensor) -> Tensor:
        """Nearest even."""
        rounded = x.to(self.dtype)
        if self.dtype == torch.float32 or rounded.numel() == 0 or torch.isfinite(rounded.abs().amax()):
            return rounded
        first = tuple(torch.isinf(rounded).nonzero()[0].tolist())
        raise NonFiniteError(
            f"value {x[first].item():g} at index {first} overflows {self.codec_id}, whose largest is "
            f"{torch.finfo(self.dtype).max:g}; use a format of wider range"
        )

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        return from_little_endian(payload, self.dtype).float()


@dataclass(frozen=True)
class Fp32(_Floating):
    """Every bit of float32."""

    codec_id: ClassVar[str] = "fp32"
    unbiased = True
    dtype: ClassVar[torch.dtype] = torch.float32


@dataclass(frozen=True)
class Fp16(_Floating):
    """IEEE half precision; a value over 65504 is refused with NonFiniteError, not sent as infinity."""

    codec_id: ClassVar[str] = "fp16"
    dtype: ClassVar[torch.dtype] = torch.float16


@dataclass(frozen=True)
class Bf16(_Floating):
    """bfloat16: the range of float32 with 8 bits of precision."""

    codec_id: ClassVar[str] = "bf16"
    dtype: ClassVar[torch.dtype] = torch.bfloat16


def little_endian(x: Tensor) -> bytes:
    """Bytes of a contiguous 16- or 32-bit tensor on the CPU."""
    whole = x.view(torch.int16 if x.dtype.itemsize == 2 else torch.int32).numpy()
    return whole.astype(whole.dtype.newbyteorder("<"), copy=False).tobytes()


def from_little_endian(payload: bytes, dtype: torch.dtype) -> Tensor:
    """Inverse of `little_endian`: (count,) of the 16- or 32-bit dtype."""
    whole = np.frombuffer(payload, "<i2" if dtype.itemsize == 2 else "<i4")
    return torch.from_numpy(whole.astype(whole.dtype.newbyteorder("="))).view(dtype)
