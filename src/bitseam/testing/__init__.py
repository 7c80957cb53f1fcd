"""Checks that every codec and quantizer of Bitseam passes, for those of others to inherit; they need pytest."""

from bitseam.testing.codec_checklist import CodecCase, CodecChecklist, sample
from bitseam.testing.quantizer_checklist import QuantizerChecklist

__all__ = ["CodecCase", "CodecChecklist", "QuantizerChecklist", "sample"]
