"""A fixed count of values of each token, and zeros: top-k and randomized top-k (Zheng et al., arXiv 2305.18469).

Payload: the positions of the values of all tokens (`subsets`); where values have fewer than 16 bits, the scale of each
token as bfloat16, little-endian; the values, as float16, or the packed indices of their levels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.blocks import bfloat16_nearest, per_block, read_scales
from bitseam.codecs.floating import Fp16, little_endian
from bitseam.codecs.packing import pack, packed_bytes
from bitseam.codecs.subsets import pack_subsets, subsets_bytes, unpack_subsets
from bitseam.codecs.uniform import unpack_levels
from bitseam.errors import CodecError
from bitseam.quant.uniform import index_dtype, to_indices

_FP16 = Fp16()


@dataclass(frozen=True)
class TopK(Codec):
    """The `share` of each token's values (of its last dimension; one at least) that are largest in magnitude.

    The rest decodes to zero and nothing is scaled up in return: biased, towards zero. `bits` of a value are 16 (half
    precision), or 1 to 8: 2^bits even levels from -scale to scale, the token's largest magnitude. These have no zero,
    as what is kept is not near it; one bit is the sign.
    """

    codec_id: ClassVar[str] = "top-k"
    share: float
    bits: int = 16

    def __post_init__(self) -> None:
        if type(self.share) not in (int, float) or not 0 < self.share <= 1:
            raise CodecError(f"share must be a number over 0 and up to 1, not {self.share!r}")
        object.__setattr__(self, "share", float(self.share))  # 1 and 1.0 are one codec, and one text in the handshake
        if type(self.bits) is not int or not (1 <= self.bits <= 8 or self.bits == 16):
            raise CodecError(f"bits must be a whole number from 1 to 8, or 16, not {self.bits!r}")

    def kept(self, width: int) -> int:
        """k: how many of a token's values are sent."""
        return min(max(int(self.share * width + 0.5), 1), width)

    def _select(self, magnitude: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        """Magnitudes (T, C) -> the mask (T, C) of the k values of each token to send."""
        return largest(magnitude, k)

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        tokens, width = _tokens(shape)
        return subsets_bytes(tokens, self.kept(width), width) + self._values_bytes(tokens, self.kept(width))

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        tokens, width = _tokens(tuple(x.shape))
        x, k = x.reshape(tokens, width), self.kept(width)
        mask = self._select(x.abs(), k, generator)
        return pack_subsets(mask.numpy(), k) + self._encode_values(x[mask].reshape(tokens, k))

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        tokens, width = _tokens(shape)
        k = self.kept(width)
        end = subsets_bytes(tokens, k, width)
        positions = torch.from_numpy(unpack_subsets(payload[:end], tokens, k, width))
        return torch.zeros(tokens, width).scatter_(1, positions, self._decode_values(payload[end:], tokens, k))

    def _values_bytes(self, tokens: int, k: int) -> int:
        return 2 * tokens * k if self.bits == 16 else 2 * tokens + packed_bytes(tokens * k, 2**self.bits)

    def _encode_values(self, values: Tensor) -> bytes:
        """Values (T, k) -> bytes."""
        if self.bits == 16:
            return _FP16.encode(values)
        levels = 2**self.bits
        scale = bfloat16_nearest(values.abs().amax(dim=1), self.codec_id)
        indices = per_block(values, scale, lambda unit: to_indices(unit, levels, 1), index_dtype(levels))
        return little_endian(scale) + pack(indices.numpy(), levels)

    def _decode_values(self, payload: bytes, tokens: int, k: int) -> Tensor:
        """Inverse of `_encode_values`: (T, k)."""
        if self.bits == 16:
            return _FP16.decode(payload, (tokens, k))
        scale = read_scales(payload[: 2 * tokens], self.codec_id)
        return unpack_levels(payload[2 * tokens :], tokens * k, 2**self.bits, 1).reshape(tokens, k) * scale[:, None]


@dataclass(frozen=True)
class RandomizedTopK(TopK):
    """k draws without replacement, in which the top k share the weight 1 - chance evenly, and all others `chance`.

    As the top k are used up, more of the others come than `chance` says: at .1, 18 % of what is sent if k is a tenth.
    The paper draws in training, where that keeps rarely used channels learning, and takes the top k after; that is the
    codec "top-k", of the same payload. Biased as that one: what is sent is not scaled by its probability.
    """

    codec_id: ClassVar[str] = "randomized-top-k"
    chance: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.chance) not in (int, float) or not 0 <= self.chance < 1:
            raise CodecError(f"chance must be a number from 0 to under 1, not {self.chance!r}")
        object.__setattr__(self, "chance", float(self.chance))

    def settled(self) -> TopK:
        """The top k, which chance only varies: what the paper takes after training."""
        return TopK(self.share, self.bits)

    def _select(self, magnitude: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
        weight = torch.full_like(magnitude, self.chance / max(magnitude.shape[1] - k, 1))
        weight[largest(magnitude, k)] = (1 - self.chance) / k
        # Such draws are the same as a race of exponential clocks (Efraimidis, Spirakis, 2006). The log of what is under
        # one is never zero, so a weight of zero gives minus infinity and not NaN.
        return largest(torch.rand(magnitude.shape, generator=generator).log_().div_(weight), k)


def largest(x: Tensor, k: int) -> Tensor:
    """The mask (T, C) of each row's k largest, 1 <= k <= C; of equals the first, whatever the machine."""
    least = x.topk(k, dim=1).values[:, -1:]
    over, equal = x > least, x == least
    return over | equal & (equal.cumsum(dim=1, dtype=torch.int32) <= k - over.sum(dim=1, keepdim=True))


def _tokens(shape: tuple[int, ...]) -> tuple[int, int]:
    """(...) -> how many tokens, and of what width; none where there are no elements."""
    width = max(math.prod(shape[-1:]), 1)
    return math.prod(shape) // width, width
