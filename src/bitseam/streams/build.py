"""A recipe's words for a stream -> its quantizer, its projection and its codecs."""

from __future__ import annotations

from torch import nn

from bitseam import config
from bitseam.codecs import Codec, Delta, codec_from_config
from bitseam.errors import CodecError, ConfigError
from bitseam.quant import (
    RDFSQ,
    LearnedClipFSQ,
    LevelProjection,
    Quantizer,
    RateFSQ,
    StepFSQ,
    TanhFSQ,
    TensorRDFSQ,
)
from bitseam.quant.rd_fsq import ProjectingQuantizer, semi_orthogonal_map
from bitseam.streams.through_codec import ThroughChanges, ThroughCodec

_CLIPPED = {"rd-fsq": RDFSQ, "tanh-fsq": TanhFSQ, "learned-clip-fsq": LearnedClipFSQ, "rate-fsq": RateFSQ}
_UNIT_GRID = {"rd-fsq-tensor", "learned-clip-fsq"}  # levels in [-1, 1]; the others' in deviations, out to the clip
_WHOLE_STEPS = {"step-fsq"}  # levels one apart


def channels_of(settings: config.Stream, width: int) -> int:
    """C, of a token on the wire."""
    return settings.channels or width


def build_codecs(name: str, settings: config.Stream) -> tuple[tuple[Codec, ...], Codec]:
    """A codec for each rate, and that of gradients. Raises ConfigError that names the key."""
    rates = []
    for multiple in settings.rates:
        options = dict(settings.codec)
        if settings.quantizer != "none":
            clip = multiple * (1.0 if settings.quantizer in _UNIT_GRID else settings.clip)
            clip = (settings.levels - 1) / 2 if settings.quantizer in _WHOLE_STEPS else clip
            options |= {"levels": settings.levels, "clip": clip}
        rates.append(_codec(f"streams.{name}.codec", options))
    return tuple(rates), _codec(f"streams.{name}.gradient", settings.gradient)


def build_quantizer(settings: config.Stream, width: int, codec: Codec) -> Quantizer:
    """The sending end: features (..., D) -> levels (..., C)."""
    size = width, channels_of(settings, width)
    if settings.quantizer == "rd-fsq-tensor":
        return TensorRDFSQ(*size, settings.levels)
    quantizer: ProjectingQuantizer
    if settings.quantizer == "none":
        quantizer = ThroughChanges(*size, codec) if isinstance(codec, Delta) else ThroughCodec(*size, codec)
    elif settings.quantizer == "step-fsq":
        quantizer = StepFSQ(*size, settings.levels, settings.steps)
    else:
        quantizer = _CLIPPED[settings.quantizer](*size, settings.levels, settings.clip)
    quantizer.project.requires_grad_(settings.projection == "learned")
    return quantizer


def build_projection(settings: config.Stream, width: int) -> nn.Module:
    """The receiving end: levels (..., C) -> features (..., D)."""
    channels = channels_of(settings, width)
    if settings.quantizer == "rd-fsq-tensor":
        return nn.Linear(channels, width)  # as published: knows no statistics
    projection: nn.Module
    if settings.quantizer == "none":
        projection = nn.Identity() if channels == width else semi_orthogonal_map(channels, width)
    else:
        projection = LevelProjection(channels, width, rotated=settings.quantizer == "rate-fsq")
    return projection.requires_grad_(settings.projection == "learned")


def _codec(key: str, options: dict[str, object]) -> Codec:
    try:
        return codec_from_config(options)
    except CodecError as error:
        raise ConfigError(f"{key}: {error}") from error
