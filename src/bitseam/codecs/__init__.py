"""Codecs, tensor <-> bytes, by the name that both sides agree on in the handshake."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import rfc8785

from bitseam.codecs import plugins
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
from bitseam.errors import BitseamError, CodecError, first_sentence

__all__ = [
    "BUILT_IN",
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
    "codecs",
]

BUILT_IN: dict[str, type[Any]] = {
    codec.codec_id: codec
    for codec in (
        *(Fp32, Fp16, Bf16, Fp8, Uniform, Stochastic, BlockwiseInt, NormalFloat),
        *(EntropyUniform, EntropyStochastic, TopK, RandomizedTopK, OneBit, SplitFC, Delta),
    )
}


def codec_from_config(config: Mapping[str, Any]) -> Codec:
    """Build a codec from {"id": ..., **its fields}. Raises CodecError for what is unknown, missing or out of range."""
    kind = config.get("id")
    if not isinstance(kind, str) or kind not in {*BUILT_IN, *plugins.named()}:
        raise CodecError(f"unknown codec {kind!r}; known: {', '.join([*BUILT_IN, *plugins.named()])}")
    options = {key: value for key, value in config.items() if key != "id"}
    made = _class_of(kind)
    known = fields(made)
    names = ", ".join(field.name for field in known) or "none"
    for key in options:
        if key not in {field.name for field in known}:
            raise CodecError(f"codec {kind} has no option {key!r}; known: {names}")
    for field in known:
        if field.default is MISSING and field.name not in options:
            raise CodecError(f"codec {kind} needs the option {field.name!r}; known: {names}")
    try:
        return made(**options)
    except BitseamError:
        raise
    except Exception as error:  # of a codec that is not ours
        raise CodecError(f"codec {kind}: {first_sentence(error, named=True)}") from error


def codecs() -> dict[str, type[Any]]:
    """Every codec that a recipe may name, others' too. Raises CodecError that names a package whose codec is none."""
    return {name: _class_of(name) for name in [*BUILT_IN, *plugins.named()]}


def _class_of(name: str) -> type[Any]:
    if name in plugins.named():
        return plugins.load(name, frozenset(BUILT_IN))
    return BUILT_IN[name]


def canonical(config: Mapping[str, Any]) -> str:
    """The one text of a codec's configuration: RFC 8785 with defaults filled in, which any language can make.

    Raises as `codec_from_config`.
    """
    codec = codec_from_config(config)
    try:
        return rfc8785.dumps(codec.config()).decode()
    except rfc8785.CanonicalizationError as error:
        raise CodecError(f"codec {codec.codec_id}: options that are no JSON: {error}") from error
