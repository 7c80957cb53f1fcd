"""Where a client that trains stands with the server, as long as the server's process lives."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from torch import Tensor

from bitseam.wire import messages_pb2 as pb


@dataclass(eq=False)
class Seat:
    """One client's.

    step: its last whole step. connection: through which it speaks, its newest. micro: micro-batches of the next step
    that are in; loss, answer_tokens and gradients: their sums. request: digest of the last Forward, and answer: its
    Backward, which a repeated one gets again. averaged: the step of its last average, and average: what that gave, of
    how many clients.
    """

    name: str
    step: int = 0
    connection: object = None
    session: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    micro: int = 0
    loss: float = 0.0
    answer_tokens: int = 0
    gradients: list[Tensor | None] = field(default_factory=list)  # while another client's are gathered in the half
    request: bytes = b""
    answer: pb.Backward = field(default_factory=pb.Backward)
    warned: bool = False  # that the server is being stopped
    averaged: int = 0
    average: tuple[Tensor, int] | None = None
