"""Codecs, tensor <-> bytes, by the name that both sides agree on in the handshake."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

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
from bitseam.errors import BitseamError, CodecError, printable

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
        *(EntropyUniform, EntropyStochastic, TopK, RandomizedTopK, OneBit, SplitFC),
    )
}


def codec_from_config(config: Mapping[str, Any]) -> Codec:
    """Build a codec from {"id": ..., **its fields}. Raises CodecError for what is unknown, missing or out of range."""
    kind = config.get("id")
    if not isinstance(kind, str) or kind not in {*BUILT_IN, *plugins.named()}:
        raise CodecError(f"unknown codec {kind!r}; known: {', '.join([*BUILT_IN, *plugins.named()])}")
    options = {key: value for key, value in config.items() if key != "id"}
    known = fields(_class_of(kind))
    names = ", ".join(field.name for field in known) or "none"
    for key in options:
        if key not in {field.name for field in known}:
            raise CodecError(f"codec {kind} has no option {key!r}; known: {names}")
    for field in known:
        if field.default is MISSING and field.name not in options:
            raise CodecError(f"codec {kind} needs the option {field.name!r}; known: {names}")
    try:
        return _class_of(kind)(**options)
    except BitseamError:
        raise
    except Exception as error:  # of a codec that is not ours
        raise CodecError(f"codec {kind}: {type(error).__name__}: {printable(str(error))}") from error


def codecs() -> dict[str, type[Any]]:
    """Every codec that a recipe may name, others' too. Raises CodecError that names a package whose codec is none."""
    return {name: _class_of(name) for name in [*BUILT_IN, *plugins.named()]}


def _class_of(name: str) -> type[Any]:
    if name in plugins.named():
        return plugins.load(name, frozenset(BUILT_IN))
    return BUILT_IN[name]


def canonical(config: Mapping[str, Any]) -> str:
    """The one text of a codec's configuration: JSON, keys sorted, defaults filled in. Raises as `codec_from_config`."""
    return json.dumps(codec_from_config(config).config(), sort_keys=True, separators=(",", ":"))
