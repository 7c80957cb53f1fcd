"""Features as a codec of floats gives them back: what stands in a quantizer's place where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from bitseam.codecs import Codec, Delta
from bitseam.errors import CodecError
from bitseam.quant import Quantized
from bitseam.quant.base import straight_through
from bitseam.quant.rd_fsq import ProjectingQuantizer


class ThroughCodec(ProjectingQuantizer):
    """x (..., D) -> z = W x + b (..., C) -> levels = decode(encode(z)), with the gradient of z and no distortion.

    W starts semi-orthogonal; where C == D there is no map, and z = x. seed: of what a codec draws at random for one
    batch of training; None takes PyTorch's own generator. In evaluation the codec's `settled` form codes, and what
    still draws begins from the same seed each time, so that the same question has the same answer.
    """

    def __init__(self, width: int, channels: int, codec: Codec) -> None:
        """Raises CodecError for channels out of range."""
        super().__init__(width, channels, square=False)
        self.codec = codec
        self.seed: int | None = None

    def _quantize(self, x: Tensor) -> Quantized:
        z = self._projected(x)
        codec, seed = (self.codec, self.seed) if self.training else (self.codec.settled(), 0)
        return self._coded(z, codec, None if seed is None else torch.Generator().manual_seed(seed))

    def _coded(self, z: Tensor, codec: Codec, generator: torch.Generator | None) -> Quantized:
        payload = codec.encode(z.detach(), generator)
        decoded = codec.decode(payload, tuple(z.shape), z.device)
        return Quantized(straight_through(z, decoded), z.new_zeros(()), payload)


class ThroughChanges(ThroughCodec):
    """In training, an image's levels are what the other side knows of it, its change since it was last sent included.

    changes: this end's memory, which each batch of training advances. samples: numbers of a batch's images.
    """

    codec: Delta

    def __init__(self, width: int, channels: int, codec: Delta) -> None:
        """As `ThroughCodec`."""
        super().__init__(width, channels, codec)
        self.samples: tuple[int, ...] = ()
        self.forget()

    def forget(self) -> None:
        """Remember no image."""
        self.changes = self.codec.changes()

    def _coded(self, z: Tensor, codec: Codec, generator: torch.Generator | None) -> Quantized:
        if not self.training:
            return super()._coded(z, codec, generator)
        if z.ndim != 3 or len(self.samples) != len(z):
            raise CodecError(
                f"codec delta needs the number of each image to train: {len(self.samples)} were given for {len(z)} "
                "images (TextBatch.samples)"
            )
        coded = [self.changes.code(sample, one, generator) for sample, one in zip(self.samples, z, strict=True)]
        decoded = torch.stack([value for _, value in coded]).to(z.device)
        payload = b"".join(message for message, _ in coded)
        return Quantized(straight_through(z, decoded), z.new_zeros(()), payload, self.samples)
