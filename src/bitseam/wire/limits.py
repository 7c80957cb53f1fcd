"""What a message may be at the most, and how long a server waits for it. Checked before memory is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bitseam.wire import messages_pb2 as pb


@dataclass(frozen=True)
class Limits:
    """Defaults fit a batch of 64 images of 729 tokens of 4096 channels."""

    frame_bytes: int = 512 * 2**20
    control_bytes: int = 2**18  # of messages without tensors; small, since protobuf unfolds two bytes into an object
    rank: int = 4
    elements: int = 2**28  # of one tensor
    batch: int = 4096  # sequences of a message
    streams: int = 16  # that cross
    rates: int = 16  # of a stream
    tokens: int = 2**20  # of all sequences of a message
    sequence_tokens: int = 2**20  # of one sequence, without its image
    image_tokens: int = 2**20  # of one image
    positions: int = 2**32 - 1  # of a sequence with its image and its new tokens
    terms: int = 64
    checkpoints: int = 64  # steps of a Hello
    text: int = 4096  # characters of a term or a reason
    weights: int = 2**26  # of a client's half, where halves are averaged
    channels: int = 65536
    tables: int = 2**21  # bytes of frequencies: 4096 tables of 256 levels
    rotation: int = 2**24  # bytes of directions: 4096 channels
    new_tokens: int = 4096
    hello_seconds: float = 30.0  # from the beginning of a session to its Hello
    idle_seconds: float = 3600.0  # from one message of a client to its next, which it may have to compute

    def told(self) -> pb.Limits:
        """What a Welcome says of them."""
        return pb.Limits(**{name: getattr(self, name) for name in _TOLD})

    def narrowed(self, told: pb.Limits) -> Limits:
        """These, where the server takes no less; else the server's."""
        return replace(self, **{name: min(getattr(self, name), getattr(told, name)) for name in _TOLD})


_TOLD = tuple(pb.Limits.DESCRIPTOR.fields_by_name)
