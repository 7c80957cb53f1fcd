"""The change of a sample since it was last sent, for samples that come again (AQ-SGD, arXiv 2206.01299).

    epoch 1        x                   -> first codec -> both sides remember what was decoded
    every later    x - what is known   -> inner codec -> both sides add what was decoded

A message is a sample's visit, four bytes little-endian from zero, and the payload of the codec that the visit takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.errors import CodecError
from bitseam.quant.finite import require_finite

VISIT_BYTES = 4


@dataclass(frozen=True)
class _Known:
    value: Tensor  # float32, CPU
    visits: int


class Delta:
    """One end of a way on which samples are sent again and again: the sender calls `encode`, the receiver `decode`.

    Both ends update their memory from the decoded message alone, so they hold the same bits; what one message loses is
    in the next one's difference, which is error feedback. So the reconstruction of a sample that stays the same
    closes in on it, if the inner codec *contracts*: if what it loses of a tensor is smaller than the tensor and shrinks
    with it, as in codecs that scale blocks (`stochastic` does with 4 levels and tens of values a block; with 2, never).

    The memory holds `capacity` bytes. First come, first kept: a sample that does not fit is not remembered and crosses
    by the first codec each time. Evicting would help nobody who goes through the samples in epochs, as the one evicted
    is the next to come. Both ends decide alike if they see the same messages in the same order. A message that
    fails to decode changes nothing; one lost or sent twice is refused by its visit.
    """

    def __init__(self, first: Codec, inner: Codec, capacity: int) -> None:
        """Raises CodecError for a negative capacity."""
        if capacity < 0:
            raise CodecError(f"capacity must be a number of bytes, not {capacity}")
        self.first = first
        self.inner = inner
        self.capacity = capacity
        self.held = 0  # bytes
        self._known: dict[int, _Known] = {}

    def encode(self, sample: int, x: Tensor, generator: torch.Generator | None = None) -> bytes:
        """Sample id and its features (...) -> message; its difference to `known` goes through the codec.

        Raises as the codecs do, and CodecError where the sample had another shape before.
        """
        known = self._recall(sample, x.shape)
        x = x.detach().to("cpu", torch.float32)
        payload = self._codec(known).encode(x if known is None else x - known.value, generator)
        self._remember(sample, known, payload, x.shape)
        return _visit(known).to_bytes(VISIT_BYTES, "little") + payload

    def decode(self, sample: int, message: bytes, shape: Sequence[int]) -> Tensor:
        """Message -> float32 (...) on the CPU, the same bits as the sender knows.

        Raises CodecError for bytes that no encoder makes, for another shape than before, and where the two ends do not
        remember the same.
        """
        known = self._recall(sample, shape)
        visit = int.from_bytes(message[:VISIT_BYTES], "little")
        if len(message) < VISIT_BYTES or visit != _visit(known):
            raise CodecError(f"sample {sample}: visit {visit} came, {_visit(known)} is due; both ends must start anew")
        return self._remember(sample, known, message[VISIT_BYTES:], shape)

    def known(self, sample: int) -> Tensor | None:
        """What the other end has of a sample, or None where it is not remembered."""
        known = self._known.get(sample)
        return None if known is None else known.value.clone()

    def _codec(self, known: _Known | None) -> Codec:
        return self.first if known is None else self.inner

    def _recall(self, sample: int, shape: Sequence[int]) -> _Known | None:
        known = self._known.get(sample)
        if known is not None and known.value.shape != tuple(shape):
            raise CodecError(f"sample {sample} has shape {tuple(shape)}, and had {tuple(known.value.shape)} before")
        return known

    def _remember(self, sample: int, known: _Known | None, payload: bytes, shape: Sequence[int]) -> Tensor:
        """Decode, update the memory, and give what is now known of the sample."""
        value = self._codec(known).decode(payload, shape)
        if known is not None:
            value += known.value
            require_finite(value, f"sum of the differences of sample {sample}")
        elif self.held + value.nbytes > self.capacity:
            return value
        else:
            self.held += value.nbytes
        self._known[sample] = _Known(value, _visit(known) + 1)
        return value.clone()


def _visit(known: _Known | None) -> int:
    return 0 if known is None else known.visits
