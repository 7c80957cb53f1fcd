"""What crosses: streams, each with a sending and a receiving end, codecs and tables.

Shapes: D feature width, C code channels; leading dimensions (...), of tokens, are free.
"""

from bitseam.streams.end import End, agreed, build_streams
from bitseam.streams.receiver import Receiver, remember
from bitseam.streams.sender import Sender

__all__ = ["End", "Receiver", "Sender", "agreed", "build_streams", "remember"]
