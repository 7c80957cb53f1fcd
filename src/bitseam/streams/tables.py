"""Tables of entropy codecs: kept in both halves, so in their checkpoints, and sent when new ones pay.

The client alone makes tables: in calibration, and again when the codes have drifted from them. They travel beside the
statistics, and neither side adapts to what was coded: a Forward can then be replayed, and an Ask can come between two
steps, without leaving the two sides with different tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bitseam import config
from bitseam.codecs import EntropyUniform
from bitseam.errors import CodecError
from bitseam.quant import RateFSQ
from bitseam.streams.seam import MODALITIES, Seam, build_seam

_MEMORY = 0.98  # of the counts, a micro-batch: new tables fit the last 50 or so
_MESSAGE = 8  # bytes around tables in a message


def entropy_codec(seam: Seam, name: str, rate: int = 0) -> EntropyUniform | None:
    """The codec of a modality's features at a rate, where it has tables. Raises CodecError for a rate not agreed."""
    link = getattr(seam, name)
    codec = None if link is None else link.at(rate, name)
    return codec if isinstance(codec, EntropyUniform) else None


def register_tables(model: nn.Module, seam: config.Seam) -> None:
    """Give a half its buffers NAME_tables: uint8 (rates, bytes as they travel), equal frequencies until calibrated."""
    for name in MODALITIES:
        link = getattr(build_seam(seam), name)
        raw = None
        if link is not None and isinstance(link.up, EntropyUniform):
            raw = torch.tensor([list(codec.table_bytes()) for codec in link.rates], dtype=torch.uint8)
        model.register_buffer(f"{name}_tables", raw)


def with_kept_tables(seam: Seam, model: nn.Module) -> Seam:
    """The seam with the tables that a half keeps."""
    for name in MODALITIES:
        if entropy_codec(seam, name) is not None:
            for rate, raw in enumerate(getattr(model, f"{name}_tables").cpu().numpy()):
                seam = with_tables(seam, name, raw.tobytes(), rate)
    return seam


def with_tables(seam: Seam, name: str, raw: bytes, rate: int = 0) -> Seam:
    """The seam with a modality's tables of a rate as they travel. Raises CodecError where none are due, or for wrong
    ones."""
    codec = entropy_codec(seam, name, rate)
    if codec is None:
        raise CodecError(f"{name}: tables for a codec that has none")
    link = getattr(seam, name)
    link = replace(link, rates=(*link.rates[:rate], codec.with_tables(raw), *link.rates[rate + 1 :]))
    return replace(seam, image=link) if name == "image" else replace(seam, text=link)


def keep_tables(model: nn.Module, name: str, raw: bytes, rate: int = 0) -> None:
    """Put a modality's tables of a rate into a half."""
    getattr(model, f"{name}_tables")[rate].copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))


def use_rate(model: nn.Module, seam: Seam, name: str, rate: int) -> None:
    """Have a modality's quantizer make levels for a rate, at the prices of its tables."""
    quantizer, codec = getattr(model, f"{name}_quantizer"), entropy_codec(seam, name, rate)
    if isinstance(quantizer, RateFSQ) and codec is not None:
        quantizer.use(codec.clip, codec.prices(quantizer.channels))


@dataclass
class Fit:
    """Whether a codec's tables still fit what it codes.

    Candidates learn from earlier micro-batches, and are compared with the tables in use on the present one. When those
    have lost as many bits as sending others takes, others are due: at the worst, twice the bits of knowing beforehand
    (the bound of ski rental). counts: (groups, L); lost: bits, infinite before calibration, when any tables are better.
    """

    counts: NDArray[Any] = field(default_factory=lambda: np.zeros(()))
    lost: float = 0.0

    def renewed(self, codec: EntropyUniform, counts: NDArray[np.int64]) -> EntropyUniform | None:
        """Count a micro-batch; the codec with new tables where they are due."""
        candidate = codec.learned(self.counts + np.zeros(counts.shape))
        self.lost = max(0.0, self.lost + codec.bits(counts) - candidate.bits(counts))
        self.counts = np.asarray(_MEMORY * self.counts + counts)
        if self.lost < 8 * (len(codec.table_bytes()) + _MESSAGE):
            return None
        self.lost = 0.0
        return codec.learned(self.counts)
