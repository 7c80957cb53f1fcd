"""What every codec gives and promises.

    x (...) floats -> encode -> payload -> decode(payload, shape, device) -> float32 (...) on that device

The payload holds the numbers alone: both sides agree on the codec in the handshake, and the shape travels beside it. A
codec is a frozen dataclass whose fields are its configuration.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitseam.errors import CodecError
from bitseam.quant.finite import require_finite

MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**48  # what the transport lets pass is far less; this keeps the arithmetic of sizes itself in bounds


class Codec(ABC):
    """Tensor <-> bytes. Checks that all codecs share are here; a codec adds three small hooks."""

    codec_id: ClassVar[str]
    fixed_length: ClassVar[bool] = True  # whether the shape alone decides the length of a payload

    @property
    def unbiased(self) -> bool:
        """Whether E[decode(encode(x))] = x for any x, as gradients should have it: rounding at random, or none."""
        return False

    def settled(self) -> "Codec":
        """The codec to encode with where nothing is trained, whose payloads this one decodes: itself, unless it draws
        at random what to leave out."""
        return self

    def config(self) -> dict[str, Any]:
        """What `codec_from_config` builds the same codec from; fit for JSON."""
        return {"id": self.codec_id, **asdict(self)}  # type: ignore[call-overload]

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> bytes:
        """Encode floats of any shape, on any device; `generator` (CPU) serves the codecs that draw random numbers.

        Raises CodecError for a dtype that is not floating-point, NonFiniteError for NaN or infinity, and CodecError
        where the codec itself breaks its promises.
        """
        if not x.is_floating_point():
            raise CodecError(f"codec {self.codec_id} takes floating-point tensors, not {x.dtype}")
        self._check_shape(x.shape)
        require_finite(x, f"input of codec {self.codec_id}")
        payload, due = self._encode_from(x.detach(), generator), self._payload_bytes(tuple(x.shape))
        if type(payload) is not bytes or len(payload) > due or (self.fixed_length and len(payload) < due):
            came = f"{len(payload)} bytes" if type(payload) is bytes else f"{type(payload).__name__}, not bytes"
            raise CodecError(
                f"codec {self.codec_id} made {came} of shape {tuple(x.shape)}, which by its own word takes {due} "
                f"bytes{'' if self.fixed_length else ' at most'}"
            )
        return payload

    def decode(self, payload: bytes, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """Decode to float32 of the given shape, on the given device.

        Raises CodecError, before memory is taken, for a shape no tensor has or a payload of a length that it cannot
        take; and for bytes that no encoder makes, or where the codec itself breaks its promises.
        """
        most = self.payload_bytes(shape)
        if len(payload) > most or (self.fixed_length and len(payload) < most):
            due = f"{most} bytes" if self.fixed_length else f"{most} bytes at most"
            raise CodecError(
                f"codec {self.codec_id}: shape {tuple(shape)} takes {due}, not the {len(payload)} received"
            )
        return self._decode_to(payload, tuple(shape), torch.device(device)).reshape(tuple(shape))

    def payload_bytes(self, shape: Sequence[int]) -> int:
        """Length of the payload of a tensor of this shape; the greatest possible where `fixed_length` is false.

        Raises CodecError for a shape no tensor has.
        """
        self._check_shape(shape)
        return self._payload_bytes(tuple(shape))

    def _check_shape(self, shape: Sequence[int]) -> None:
        if len(shape) > MAX_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
            raise CodecError(f"codec {self.codec_id}: {tuple(shape)} is no shape of up to {MAX_DIMENSIONS} dimensions")
        if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
            raise CodecError(f"codec {self.codec_id}: shape {tuple(shape)} is too large")

    def _encode_from(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        """Finite floats on any device -> payload: by the CPU, unless the codec has kernels for that device."""
        return self._encode(x.to("cpu", torch.float32).contiguous(), generator)

    def _decode_to(self, payload: bytes, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Payload of a possible length -> float32 on the device, in any shape; by the CPU, as above."""
        x = self._decode(payload, shape)
        if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.numel() != math.prod(shape):
            came = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise CodecError(f"codec {self.codec_id} decoded to {came} where float32 of shape {shape} is due")
        require_finite(x, f"payload of codec {self.codec_id}")
        return x.to(device)

    @abstractmethod
    def _payload_bytes(self, shape: tuple[int, ...]) -> int: ...

    @abstractmethod
    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        """Finite, contiguous float32 on the CPU -> payload."""

    @abstractmethod
    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        """Payload of a possible length -> float32 of the right count of elements, in any shape."""
