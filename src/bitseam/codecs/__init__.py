"""Codecs, tensor <-> bytes, by the name that both sides agree on in the handshake."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import rfc8785

from bitseam.codecs.base import Codec
from bitseam.codecs.blockwise_int import BlockwiseInt
from bitseam.codecs.delta import Delta
from bitseam.codecs.entropy.stochastic import EntropyStochastic
from bitseam.codecs.entropy.uniform import EntropyUniform
from bitseam.codecs.floating import Bf16, Fp16, Fp32
from bitseam.codecs.fp8 import Fp8
from bitseam.codecs.normal_float import NormalFloat
from bitseam.codecs.one_bit import OneBit
from bitseam.codecs.split_fc import SplitFC
from bitseam.codecs.stochastic import Stochastic
from bitseam.codecs.top_k import RandomizedTopK, TopK
from bitseam.codecs.uniform import Uniform
from bitseam.errors import CodecError

__all__ = [
    "Bf16",
    "BlockwiseInt",
    "Codec",
    "Delta",
    "EntropyStochastic",
    "EntropyUniform",
    "Fp8",
    "Fp16",
    "Fp32",
    "NormalFloat",
    "OneBit",
    "RandomizedTopK",
    "SplitFC",
    "Stochastic",
    "TopK",
    "Uniform",
    "canonical",
    "codec_from_config",
]

_CODECS: dict[str, type[Any]] = {
    codec.codec_id: codec
    for codec in (
        *(Fp32, Fp16, Bf16, Fp8, Uniform, Stochastic, BlockwiseInt, NormalFloat),
        *(EntropyUniform, EntropyStochastic, TopK, RandomizedTopK, OneBit, SplitFC),
    )
}


def codec_from_config(config: Mapping[str, Any]) -> Codec:
    """Build a codec from {"id": ..., **its fields}. Raises CodecError for what is unknown, missing or out of range."""
    kind = config.get("id")
    if not isinstance(kind, str) or kind not in _CODECS:
        raise CodecError(f"unknown codec {kind!r}; known: {', '.join(_CODECS)}")
    options = {key: value for key, value in config.items() if key != "id"}
    known = fields(_CODECS[kind])
    names = ", ".join(field.name for field in known) or "none"
    for key in options:
        if key not in {field.name for field in known}:
            raise CodecError(f"codec {kind} has no option {key!r}; known: {names}")
    for field in known:
        if field.default is MISSING and field.name not in options:
            raise CodecError(f"codec {kind} needs the option {field.name!r}; known: {names}")
    return _CODECS[kind](**options)


def canonical(config: Mapping[str, Any]) -> str:
    """The one text of a codec's configuration: RFC 8785 with defaults filled in, which any language can make.

    Raises as `codec_from_config`.
    """
    return rfc8785.dumps(codec_from_config(config).config()).decode()
