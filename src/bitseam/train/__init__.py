"""Training, from the client's side."""

from bitseam.train.loop import train

__all__ = ["train"]
