"""The change of a sample since it was last sent, for samples that come again (AQ-SGD, arXiv 2206.01299).

    epoch 1        x                   -> first codec -> both sides remember what was decoded
    every later    x - what is known   -> inner codec -> both sides add what was decoded

A message is a sample's visit, four bytes little-endian from zero, and the payload of the codec that the visit takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.errors import CodecError
from bitseam.quant.finite import require_finite

VISIT_BYTES = 4


@dataclass(frozen=True)
class Delta(Codec):
    """What two ends, of `Changes`, agree on. By itself, where nobody remembers samples, it codes as `first`: questions.

    first, inner: codecs of a fixed length, as an id or a configuration. capacity: bytes of samples that each end
    remembers.
    """

    codec_id: ClassVar[str] = "delta"
    fixed_length: ClassVar[bool] = False
    first: Any
    inner: Any
    capacity: int

    def __post_init__(self) -> None:
        for name in ("first", "inner"):
            object.__setattr__(self, name, _part(name, getattr(self, name)).config())  # one text in the handshake
        if type(self.capacity) is not int or self.capacity < 0:
            raise CodecError(f"capacity must be a number of bytes, not {self.capacity!r}")

    @cached_property
    def first_codec(self) -> Codec:
        return _part("first", self.first)

    @cached_property
    def inner_codec(self) -> Codec:
        return _part("inner", self.inner)

    def settled(self) -> Codec:
        return self.first_codec.settled()

    def changes(self) -> "Changes":
        """An end that remembers nothing yet."""
        return Changes(self.first_codec, self.inner_codec, self.capacity)

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        """Of a tensor by itself, or of messages of as many samples as its first dimension says."""
        samples = [codec.payload_bytes(shape[1:]) for codec in (self.first_codec, self.inner_codec) if shape]
        return max(self.first_codec.payload_bytes(shape), *(shape[0] * (VISIT_BYTES + most) for most in samples), 0)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        return self.first_codec.encode(x, generator)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        return self.first_codec.decode(payload, shape)


@dataclass(frozen=True)
class _Known:
    value: Tensor  # float32, CPU
    visits: int


class Changes:
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
        self.first = first
        self.inner = inner
        self.capacity = capacity
        self.held = 0  # bytes
        self._known: dict[int, _Known] = {}

    def encode(self, sample: int, x: Tensor, generator: torch.Generator | None = None) -> bytes:
        """Sample id and its features (...) -> message. Raises as `code` does."""
        return self.code(sample, x, generator)[0]

    def code(self, sample: int, x: Tensor, generator: torch.Generator | None = None) -> tuple[bytes, Tensor]:
        """Sample id and its features (...) -> message, and what the other end makes of it, float32 (...) on the CPU.

        The difference to `known` goes through the codec. Raises as the codecs do, and CodecError where the sample had
        another shape before.
        """
        known = self._recall(sample, x.shape)
        x = x.detach().to("cpu", torch.float32)
        payload = self._codec(known).encode(x if known is None else x - known.value, generator)
        value = self._remember(sample, known, payload, x.shape)
        return _visit(known).to_bytes(VISIT_BYTES, "little") + payload, value

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

    def message_bytes(self, sample: int, shape: Sequence[int]) -> int:
        """Length of the next message of a sample. Raises CodecError for a shape that no tensor has."""
        return VISIT_BYTES + self._codec(self._known.get(sample)).payload_bytes(shape)

    def state(self) -> dict[str, Tensor]:
        """All that is remembered, of samples of one shape, for `restore`."""
        known = self._known.values()
        return {
            "samples": torch.tensor(list(self._known), dtype=torch.int64),
            "visits": torch.tensor([one.visits for one in known], dtype=torch.int64),
            "values": torch.stack([one.value for one in known]) if known else torch.zeros(0),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember what `state` was taken of, and nothing else."""
        rows = zip(state["samples"].tolist(), state["values"], state["visits"].tolist(), strict=True)
        self._known = {sample: _Known(value.clone(), visits) for sample, value, visits in rows}
        self.held = sum(known.value.nbytes for known in self._known.values())

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


def _part(name: str, config: object) -> Codec:
    from bitseam.codecs import codec_from_config  # which knows this module's codec too

    if not isinstance(config, str | Mapping):
        raise CodecError(f"{name} must be a codec's id or its configuration, not {config!r}")
    codec = codec_from_config({"id": config} if isinstance(config, str) else config)
    if not codec.fixed_length:
        raise CodecError(f"{name}: the length of codec {codec.codec_id} is not decided by the shape alone")
    return codec
