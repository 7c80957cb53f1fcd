"""Stochastic rounding to whole multiples of a step, at their entropy: a gradient codec for any rate, under a bit too.

    steps   bfloat16 (items)    of each item of the first dimension
    reach   uint8               the largest multiple in the tensor; where it is 0, nothing follows
    table   uint16 (2 reach + 1)  frequencies of the multiples from -reach to reach, a sum of 65536
    stream  the multiples, as `entropy_stream` writes them

Unlike codec `stochastic`, where a token's largest value decides its step, tokens of an item share one: what is small
costs next to nothing, and the squared error is least for the bits (reverse water-filling, Cover and Thomas, ch. 10).
The table travels with each message, some bytes, so the two sides share no state.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.blocks import bfloat16_up, read_scales
from bitseam.codecs.entropy_stream import Runs, checked_table, decode, encode, most_bytes, table_of
from bitseam.codecs.floating import little_endian
from bitseam.errors import CodecError

MAX_REACH = 127  # symbols are single bytes


@dataclass(frozen=True)
class EntropyStochastic(Codec):
    """x -> step * (floor(x / step) or one more, at random), so that E[decode(encode(x))] = x.

    step: in root mean squares of an item. Of Laplacian values, 1 takes 2.1 bits and adds .16 of the variance as noise,
    2 takes 1.4 and adds .6, 4 takes .87 and adds 1.9, 16 takes .32 and adds 10.
    """

    codec_id: ClassVar[str] = "entropy-stochastic"
    fixed_length: ClassVar[bool] = False
    unbiased: ClassVar[bool] = True
    step: float = 2.0

    def __post_init__(self) -> None:
        if type(self.step) not in (int, float) or not 0.05 <= self.step <= 1000:
            raise CodecError(f"step must be a number from 0.05 to 1000, not {self.step!r}")
        object.__setattr__(self, "step", float(self.step))

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        count = math.prod(shape)
        return 2 * _items(shape) + 1 + 2 * (2 * MAX_REACH + 1) + most_bytes(count) if count else 0

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        if not x.numel():
            return b""
        rows = x.reshape(_items(tuple(x.shape)), -1)
        power = rows.double().square().mean(dim=1).sqrt() * self.step
        # A step no smaller than a 127th of the largest value, and none where all is zero.
        steps = bfloat16_up(torch.maximum(power, rows.abs().amax(dim=1).double() / MAX_REACH).float(), self.codec_id)
        place = rows / torch.where(steps > 0, steps, 1)[:, None]
        below = place.floor()
        multiples = below.add_(torch.rand(place.shape, generator=generator) < place.sub_(below))
        symbols = multiples.to(torch.int16).numpy().reshape(-1)
        reach = int(np.abs(symbols).max())
        head = little_endian(steps) + bytes([reach])
        if not reach:
            return head
        symbols = (symbols + reach).astype(np.uint8)
        table = table_of(np.bincount(symbols, minlength=2 * reach + 1))
        return head + np.array(table, "<u2").tobytes() + encode(symbols, _one_run(table, len(symbols)))

    def multiples(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        """The whole multiples in a payload: int16 (elements). Raises CodecError as `decode` does."""
        return self._read(payload, shape)[1]

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        steps, multiples = self._read(payload, shape)
        return multiples.float().reshape(len(steps), -1) * steps[:, None] if len(steps) else multiples.float()

    def _read(self, payload: bytes, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Steps (items) and multiples (elements); neither of a tensor without elements."""
        count, items = math.prod(shape), _items(shape)
        if not count:
            return torch.zeros(0), torch.zeros(0, dtype=torch.int16)
        if len(payload) < 2 * items + 1:
            raise CodecError(f"codec {self.codec_id}: {len(payload)} bytes end within the steps of {items} items")
        steps, reach = read_scales(payload[: 2 * items], self.codec_id), payload[2 * items]
        at = 2 * items + 1
        end = at + 2 * (2 * reach + 1)
        if reach > MAX_REACH:
            raise CodecError(f"codec {self.codec_id}: a reach of {reach}, over {MAX_REACH}")
        if not reach:
            if len(payload) > at:
                raise CodecError(f"codec {self.codec_id}: {len(payload) - at} bytes after zeros")
            return steps, torch.zeros(count, dtype=torch.int16)
        if len(payload) < end:
            raise CodecError(f"codec {self.codec_id}: {len(payload)} bytes end within the table")
        table = checked_table(np.frombuffer(payload[at:end], "<u2").tolist())
        symbols = decode(payload[end:], _one_run(table, count))
        return steps, torch.from_numpy(symbols).to(torch.int16).sub_(reach)


def _one_run(table: tuple[int, ...], count: int) -> Runs:
    return Runs((table,), np.array([0, count]))


def _items(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1
