"""Features as a codec of floats gives them back: what stands in a quantizer's place where there is none."""

from __future__ import annotations

from torch import Tensor

from bitseam.codecs import Codec
from bitseam.errors import CodecError
from bitseam.quant import Quantized, Quantizer
from bitseam.quant.base import straight_through


class ThroughCodec(Quantizer):
    """Levels are `decode(encode(x))`, with the gradient of x; no distortion is charged."""

    def __init__(self, width: int, channels: int, codec: Codec) -> None:
        """Raises CodecError for fewer channels than features: nothing here projects."""
        super().__init__(width, channels)
        if channels != width:
            raise CodecError(f"quantizer 'none' takes all {width} channels, not {channels}")
        self.codec = codec

    def _quantize(self, x: Tensor) -> Quantized:
        payload = self.codec.encode(x.detach())
        decoded = self.codec.decode(payload, tuple(x.shape), x.device)
        return Quantized(straight_through(x, decoded), x.new_zeros(()), payload)
