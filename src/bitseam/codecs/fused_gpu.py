"""Floats <-> packed indices of L even levels on the GPU that they are on: codec `uniform`, in the bytes of `packing`.

Only bytes cross between GPU and CPU. Plain tensor operations, which torch.compile fuses into one kernel each way, with
Triton, which comes with PyTorch's builds for GPUs; kernels are made for each count of levels when first needed, in
seconds. So small tensors go by the CPU, and so does all where nothing can be compiled (Triton takes a C compiler).

Arithmetic is of whole numbers, but for `quant.uniform.nearest`, whose bits no compiler may change: bytes are the CPU's.

Symbols are taken by words: `packing.group` of them, which fill whole bytes, 64 bits at the most. Words of 3 (8 and 64
levels), 5 and 7 bytes lie in wider ones while they are on the GPU: one more pass, over bytes.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitseam.codecs.packing import group, pack, packed_bytes, unpack
from bitseam.errors import CodecError
from bitseam.quant.uniform import level_values, nearest, scale_to_steps, to_indices

LEAST = 1 << 20  # elements; under it, compiling takes longer than what crosses
MOST_LEVELS = 256  # above, an index takes more than a byte, and a group of them may take more than 64 bits
COMPILER: dict[str, Any] = {
    "backend": "inductor",
    "dynamic": False,  # but for what `_run` marks: the count of levels is a constant of its kernel
    "isolate_recompiles": True,  # else torch gives up after eight counts of levels
    # Without the first, groups of less than 8 symbols are read in as many strides. The second: digits are under L.
    "options": {"unroll_reductions_threshold": 1, "assert_indirect_indexing": False},
}

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_log = logging.getLogger(__name__)


def takes(device: torch.device, count: int, levels: int) -> bool:
    """Whether `count` elements of so many levels are coded here, on this device."""
    return device.type == "cuda" and count >= LEAST and levels <= MOST_LEVELS and compiles(device)


@cache
def compiles(device: torch.device) -> bool:
    """Whether torch.compile makes kernels for this device; a warning is logged where it does not."""
    try:
        torch.compile(torch.neg, **COMPILER)(torch.ones(8, device=device))
    except Exception as error:  # no C compiler, no headers of Python, a GPU too old: each has another
        why = str(error).partition("\n")[0]
        _log.warning("codec uniform goes by the CPU, as torch.compile fails on %s: %s", device, why)
        return False
    return True


def encode(x: Tensor, levels: int, clip: float) -> bytes:
    """x (count,) float32 -> the bytes that `packing.pack` makes of `quant.uniform.to_indices`."""
    whole = len(x) // group(levels) * group(levels)
    rest = to_indices(x[whole:], levels, clip).cpu().numpy()
    return pack_words(x[:whole], levels, clip).cpu().numpy().tobytes() + pack(rest, levels)


def decode(payload: bytes, count: int, levels: int, clip: float, device: torch.device) -> Tensor:
    """Bytes of `count` symbols -> their levels (count,) float32. Raises CodecError as `packing.unpack` does."""
    size = group(levels)
    unpack(payload[packed_bytes(count // size * size, levels) :], count % size, levels)  # for what it refuses
    octets = np.zeros(packed_bytes(-(-count // size) * size, levels), np.uint8)
    octets[: len(payload)] = np.frombuffer(payload, np.uint8)
    return unpack_words(torch.from_numpy(octets).to(device), levels, clip)[:count]


def pack_words(x: Tensor, levels: int, clip: float) -> Tensor:
    """x (symbols of whole words,) float32 -> packed uint8 (bytes,), on the same device."""
    words = _Words.of(levels)
    scale = torch.full((), scale_to_steps(levels, clip), device=x.device)
    packed = _run(_packer, levels, x.view(-1, words.size), scale, _places(levels, x.device))
    return packed.view(torch.uint8).view(-1, words.dtype.itemsize)[:, : words.octets].reshape(-1)


def unpack_words(octets: Tensor, levels: int, clip: float) -> Tensor:
    """Packed uint8 (bytes of whole words,) -> levels (symbols,) float32, on the same device.

    Raises CodecError for what no encoder makes.
    """
    words = _Words.of(levels)
    packed = F.pad(octets.view(-1, words.octets), (0, words.dtype.itemsize - words.octets)).view(words.dtype).view(-1)
    if levels & (levels - 1):
        sign = -(2**63)  # turned, it makes the order of signed numbers that of unsigned ones
        if ((packed ^ sign) >= levels**words.size + sign).any():
            raise CodecError(f"a word holds more than its {levels}-level symbols can make")
    table = level_values(levels, clip).to(octets.device)
    return _run(_unpacker, levels, packed, table, _digit_places(levels, octets.device)).view(-1)


@dataclass(frozen=True)
class _Words:
    """How symbols lie in words. What torch takes for signed 64-bit numbers are unsigned ones."""

    size: int  # symbols
    octets: int
    dtype: torch.dtype  # which holds a word on the device, little-endian as all that torch runs on
    sums: torch.dtype  # in which words are computed
    together: int  # symbols of a digit under 2^31: a word has few, and divisions within one are of 32 bits

    @classmethod
    def of(cls, levels: int) -> "_Words":
        size = group(levels)
        octets = packed_bytes(size, levels)
        sums = torch.int32 if octets <= 3 else torch.int64
        together = max(count for count in range(1, size + 1) if levels**count < 2**31)
        return cls(size, octets, torch.uint8 if octets == 1 else sums, sums, together)


@cache
def _places(levels: int, device: torch.device) -> Tensor:
    """What each symbol counts in a word: (size,)."""
    words = _Words.of(levels)
    return torch.tensor([levels**symbol for symbol in range(words.size)], dtype=words.sums, device=device)


@cache
def _digit_places(levels: int, device: torch.device) -> Tensor:
    """What each symbol counts in its digit: int32 (size,)."""
    words = _Words.of(levels)
    powers = [levels ** (symbol % words.together) for symbol in range(words.size)]
    return torch.tensor(powers, dtype=torch.int32, device=device)


def _packer(levels: int) -> Kernel:
    words = _Words.of(levels)

    def run(x: Tensor, scale: Tensor, places: Tensor) -> Tensor:
        """x (words, size) -> (words,)"""
        indices = nearest(x, scale, levels).to(words.sums)
        return (indices * places).sum(-1, dtype=words.sums).to(words.dtype)

    return run


def _unpacker(levels: int) -> Kernel:
    words = _Words.of(levels)
    together, base = words.together, levels**words.together

    def run(packed: Tensor, table: Tensor, places: Tensor) -> Tensor:
        """packed (words,) -> (words, size)"""
        rest, digits = packed.to(words.sums)[:, None], []
        for _ in range(together, words.size, together):
            rest, digit = _divide(rest, base)
            digits.append(digit)
        digit, symbol = rest, torch.arange(words.size, device=packed.device)
        for index in reversed(range(len(digits))):
            digit = torch.where(symbol < (index + 1) * together, digits[index], digit)
        shifted = digit.to(torch.int32).div(places, rounding_mode="trunc")
        return table[shifted - shifted.div(levels, rounding_mode="trunc") * levels]

    return run


def _divide(number: Tensor, base: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of an unsigned 64-bit number by a base under 2^31: half of it is not negative."""
    half = (number >> 1) & (2**63 - 1)
    quotient = half.div(base, rounding_mode="trunc") * 2
    remainder = number - quotient * base
    more = remainder >= base
    return quotient + more, remainder - more * base


def _run(make: Callable[[int], Kernel], levels: int, words: Tensor, *others: Tensor) -> Tensor:
    torch._dynamo.mark_dynamic(words, 0)  # one kernel for any count of them
    with torch.no_grad():  # and for training and not
        return _compiled(make, levels, words.device)(words, *others)


@cache
def _compiled(make: Callable[[int], Kernel], levels: int, device: torch.device) -> Kernel:
    return torch.compile(make(levels), **COMPILER)
