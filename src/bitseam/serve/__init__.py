"""The server process."""

from bitseam.serve.server import serve

__all__ = ["serve"]
