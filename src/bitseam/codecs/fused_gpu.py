"""Floats <-> packed indices of L even levels on the GPU that they are on: codec `uniform`, in the bytes of `packing`.

Only bytes cross between GPU and CPU. The tensor operations below are fused by torch.compile into one kernel each way
(Triton's, which comes with PyTorch's builds for GPUs), made for each count of levels the first time that it is needed:
seconds. So small tensors, and machines where nothing can be compiled, go by the CPU. The operations are whole-number
arithmetic but for those of `quant.uniform.nearest`, whose bits no compiler may change.

Symbols are taken by words: `packing.group` of them, which fill whole bytes, 64 bits at the most. Words of 3 bytes (8 and
64 levels), 5 and 7 lie in wider ones while they are on the GPU: one more pass, over bytes.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitseam.codecs.packing import group, pack, packed_bytes, unpack
from bitseam.errors import CodecError
from bitseam.quant.uniform import level_values, nearest, scale_to_steps, to_indices

LEAST = 1 << 20  # elements; under it, what crosses is little, and compiling takes longer than it
MOST_LEVELS = 256  # above, an index is more than a byte, and a group of symbols may be more than 64 bits
BACKEND: dict[str, Any] = {"backend": "inductor", "options": {"assert_indirect_indexing": False}}  # digits are in [0, L)

_SIGN = -(2**63)


def takes(device: torch.device, count: int, levels: int) -> bool:
    """Whether `count` elements of so many levels are coded here, on this device."""
    return count >= LEAST and levels <= MOST_LEVELS and device.type == "cuda" and _compiles(device)


def encode(x: Tensor, levels: int, clip: float) -> bytes:
    """x (count,) float32 -> the bytes that `packing.pack` makes of `quant.uniform.to_indices`."""
    whole = len(x) // group(levels) * group(levels)
    rest = to_indices(x[whole:], levels, clip).cpu().numpy()
    return pack_whole(x[:whole], levels, clip).cpu().numpy().tobytes() + pack(rest, levels)


def decode(payload: bytes, count: int, levels: int, clip: float, device: torch.device) -> Tensor:
    """Bytes of `count` symbols -> their levels (count,) float32. Raises CodecError as `packing.unpack` does."""
    rest = count % group(levels)
    unpack(payload[packed_bytes(count - rest, levels) :], rest, levels)  # only refuses: no place for it in a copy
    words = -(-count // group(levels))
    octets = np.zeros(packed_bytes(words * group(levels), levels), np.uint8)
    octets[: len(payload)] = np.frombuffer(payload, np.uint8)
    return unpack_whole(torch.from_numpy(octets).to(device), levels, clip)[:count]


def pack_whole(x: Tensor, levels: int, clip: float) -> Tensor:
    """x (whole groups,) float32 -> packed uint8 (bytes,), on the same device."""
    words = _Words.of(levels)
    scale = torch.full((), scale_to_steps(levels, clip), device=x.device)
    kernel = _kernel(_packer, levels)
    with torch.no_grad():  # for each mode there would be another kernel
        packed = kernel(_dynamic(x.view(-1, words.size)), scale, words.places(x.device))
    return packed.view(torch.uint8).view(-1, words.dtype.itemsize)[:, : words.octets].reshape(-1)


def unpack_whole(octets: Tensor, levels: int, clip: float) -> Tensor:
    """Packed uint8 (bytes of whole groups,) -> levels (symbols,) float32, on the same device.

    Raises CodecError for what no encoder makes.
    """
    words = _Words.of(levels)
    padded = F.pad(octets.view(-1, words.octets), (0, words.dtype.itemsize - words.octets))
    packed = padded.view(words.dtype).view(-1)
    if levels & (levels - 1) and ((packed ^ _SIGN) >= levels**words.size + _SIGN).any():  # in unsigned order
        raise CodecError(f"a word holds more than its {levels}-level symbols can make")
    table = level_values(levels, clip).to(octets.device)
    with torch.no_grad():
        return _kernel(_unpacker, levels)(_dynamic(packed), table, words.digit_places(octets.device)).view(-1)


@dataclass(frozen=True)
class _Words:
    """How symbols lie in words. Words of 64 bits are unsigned numbers in what torch takes for signed ones."""

    levels: int
    size: int  # symbols
    octets: int
    dtype: torch.dtype  # that holds a word on the device; little-endian, as all that torch runs on
    sums: torch.dtype  # in which it is computed

    @classmethod
    @cache
    def of(cls, levels: int) -> "_Words":
        octets = packed_bytes(group(levels), levels)
        sums = torch.int32 if octets <= 3 else torch.int64
        return cls(levels, group(levels), octets, torch.uint8 if octets == 1 else sums, sums)

    @property
    def together(self) -> int:
        """Symbols of one digit: the most that stay under 2^31, so that all but a few divisions are of 32 bits."""
        together = 1
        while self.levels ** (together + 1) < 2**31 and together < self.size:
            together += 1
        return together

    @cache  # noqa: B019
    def places(self, device: torch.device) -> Tensor:
        """What each symbol counts in a word: (size,)."""
        return torch.tensor([self.levels**symbol for symbol in range(self.size)], dtype=self.sums, device=device)

    @cache  # noqa: B019
    def digit_places(self, device: torch.device) -> Tensor:
        """What each symbol counts in its digit: int32 (size,)."""
        powers = [self.levels ** (symbol % self.together) for symbol in range(self.size)]
        return torch.tensor(powers, dtype=torch.int32, device=device)


def _packer(levels: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    words = _Words.of(levels)

    def run(x: Tensor, scale: Tensor, places: Tensor) -> Tensor:
        """x (words, size) -> (words,)"""
        indices = nearest(x, scale, levels).to(words.sums)
        return (indices * places).sum(-1, dtype=words.sums).to(words.dtype)

    return run


def _unpacker(levels: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    words = _Words.of(levels)
    together, base = words.together, levels**words.together

    def run(packed: Tensor, table: Tensor, places: Tensor) -> Tensor:
        """packed (words,) -> (words, size)"""
        rest = packed.to(words.sums)[:, None]
        digit = rest
        if words.size > together:
            rest, digit = _divide(rest, base)
            of_symbol = torch.arange(words.size, device=packed.device) // together
            for index in range(1, -(-words.size // together)):
                rest, other = _divide(rest, base)
                digit = torch.where(of_symbol == index, other, digit)
        higher = digit.to(torch.int32).div(places, rounding_mode="trunc")
        symbols = higher - higher.div(levels, rounding_mode="trunc") * levels
        return table[symbols]

    return run


def _divide(number: Tensor, base: int) -> tuple[Tensor, Tensor]:
    """Quotient and remainder of an unsigned 64-bit number by a base under 2^62: half of it is not negative."""
    half = (number >> 1) & (2**63 - 1)
    quotient = half.div(base, rounding_mode="trunc") * 2
    remainder = number - quotient * base
    over = remainder >= base
    return quotient + over, remainder - base * over


@cache
def _kernel(make: Callable[[int], Callable[..., Tensor]], levels: int) -> Callable[..., Tensor]:
    """Compiled for any count of words, for each count of levels alone: else torch gives up after eight of them."""
    return torch.compile(make(levels), fullgraph=True, dynamic=False, isolate_recompiles=True, **BACKEND)


def _dynamic(words: Tensor) -> Tensor:
    torch._dynamo.mark_dynamic(words, 0)
    return words


@cache
def _compiles(device: torch.device) -> bool:
    """Whether torch.compile can make kernels for a GPU: Triton takes a C compiler for what calls them."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)
