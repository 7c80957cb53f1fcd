"""What the two sides agree on: quantizers, codecs, and the terms that the handshake compares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bitseam import config
from bitseam.codecs import Codec, canonical, codec_from_config
from bitseam.errors import CodecError
from bitseam.quant import (
    RDFSQ,
    Float,
    LearnedClipFSQ,
    LevelProjection,
    Quantizer,
    RateFSQ,
    StepFSQ,
    TanhFSQ,
    TensorRDFSQ,
)

MODALITIES = ("image", "text")
_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_CLIPPED = {"rd-fsq": RDFSQ, "tanh-fsq": TanhFSQ, "learned-clip-fsq": LearnedClipFSQ, "rate-fsq": RateFSQ}
_UNIT_GRID = {"rd-fsq-tensor", "learned-clip-fsq"}  # levels in [-1, 1]; the others' in deviations, out to the clip
_WHOLE_STEPS = {"step-fsq"}  # levels one apart


@dataclass(frozen=True)
class Link:
    """The codecs of one modality: features up, one for each rate; gradients down.

    asked: the rate that questions are asked at.
    """

    rates: tuple[Codec, ...]
    down: Codec
    asked: int = 0

    @property
    def up(self) -> Codec:
        """That of the first rate."""
        return self.rates[0]

    def at(self, rate: int, what: str) -> Codec:
        """The codec of a rate. Raises CodecError, naming `what`, where there is no such rate."""
        if not 0 <= rate < len(self.rates):
            raise CodecError(f"{what}: rate {rate} where {len(self.rates)} were agreed, from 0 on")
        return self.rates[rate]


@dataclass(frozen=True)
class Seam:
    """All that crosses, per modality; `text` is None where prompts cross as ids.

    width: of the language model's features.
    """

    width: int
    image: Link
    text: Link | None

    def codec_ids(self) -> dict[str, str]:
        """ "up.image" -> codec id, for the ledger."""
        links = self.links()
        return {f"{way}.{name}": getattr(link, way).codec_id for name, link in links.items() for way in ("up", "down")}

    def links(self) -> dict[str, Link]:
        """Each modality's that crosses as codes."""
        return {"image": self.image} | ({"text": self.text} if self.text else {})


def build_seam(seam: config.Seam) -> Seam:
    """Codecs as the recipe names them."""
    text = _link(seam.text_up, seam.text_down) if seam.text == "codes" else None
    return Seam(seam.width, _link(seam.image_up, seam.image_down), text)


def channels(up: config.Up, width: int) -> int:
    """C of a modality; floats cross at the full width."""
    return width if up.quantizer in _FLOATS else up.channels or width


def build_quantizer(up: config.Up, width: int) -> Quantizer:
    """The client's side of a modality: features (..., D) -> levels (..., C)."""
    if up.quantizer in _FLOATS:
        return Float(width, _FLOATS[up.quantizer])
    size = width, channels(up, width), up.levels
    if up.quantizer == "rd-fsq-tensor":
        return TensorRDFSQ(*size)
    quantizer = StepFSQ(*size, up.steps) if up.quantizer == "step-fsq" else _CLIPPED[up.quantizer](*size, up.clip)
    quantizer.project.requires_grad_(up.projection == "learned")
    return quantizer


def build_projection(up: config.Up, width: int) -> nn.Linear | None:
    """The server's side: levels (..., C) -> (..., D); None where features cross as floats."""
    if up.quantizer in _FLOATS:
        return None
    if up.quantizer == "rd-fsq-tensor":
        return nn.Linear(channels(up, width), width)  # as published: knows no statistics
    rotated = up.quantizer == "rate-fsq"
    return LevelProjection(channels(up, width), width, rotated).requires_grad_(up.projection == "learned")


def terms(recipe: config.Recipe, vocabulary: int, tokenizer: str, weights: str | None) -> dict[str, str]:
    """What must be alike on both sides, as flat text.

    tokenizer: its fingerprint. weights: which pair of halves these are (`bitseam.runs.checkpoint.Identity`), where
    questions are to be answered; None where they are to be trained, which the handshake finds a common step for.
    """
    seam = build_seam(recipe.seam)
    agreed = {
        "model.vision": recipe.client.checkpoint,
        "model.language": recipe.server.checkpoint,
        "seam.width": str(recipe.seam.width),
        "seam.text": recipe.seam.text,
        "seam.image.channels": str(channels(recipe.seam.image_up, recipe.seam.width)),
        "text.tokenizer": tokenizer,
        "text.vocabulary": str(vocabulary),
    }
    for name, link in seam.links().items():
        for number, codec in enumerate(link.rates):
            agreed[f"codec.{name}.up" + f".{number}" * (number > 0)] = canonical(codec.config())
        agreed[f"codec.{name}.down"] = canonical(link.down.config())
    if weights is not None:
        agreed["model.weights"] = weights
    else:
        agreed["train.steps"] = str(recipe.train.steps)
        agreed["train.clients"] = str(recipe.train.clients)
        agreed["train.sharing"] = recipe.train.sharing
        agreed["train.round"] = str(recipe.train.round)
        agreed["train.accumulate"] = str(recipe.train.accumulate)
        agreed["train.checkpoint_every"] = str(recipe.train.checkpoint_every)
    return agreed


def _link(up: config.Up, down: config.Down) -> Link:
    return Link(tuple(_up_codec(up, multiple) for multiple in up.rates), _down_codec(down), up.rate)


def _up_codec(up: config.Up, multiple: float) -> Codec:
    if up.quantizer in _FLOATS:
        return codec_from_config({"id": up.quantizer})
    clip = multiple * (1.0 if up.quantizer in _UNIT_GRID else up.clip)
    grid = {"levels": up.levels, "clip": (up.levels - 1) / 2 if up.quantizer in _WHOLE_STEPS else clip}
    if up.coding == "entropy":
        return codec_from_config({"id": "entropy-uniform", **grid, "groups": up.groups, "contexts": up.contexts})
    return codec_from_config({"id": "uniform", **grid})


def _down_codec(down: config.Down) -> Codec:
    if down.codec in _FLOATS:
        return codec_from_config({"id": down.codec})
    if down.codec == "entropy-stochastic":
        return codec_from_config({"id": down.codec, "step": down.step})
    return codec_from_config({"id": down.codec, "levels": down.levels, "block": down.block})
