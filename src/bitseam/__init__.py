"""Bitseam: a vision-language model cut in two, with low-bit codes up and low-bit gradients down."""

__version__ = "0.1.0"
