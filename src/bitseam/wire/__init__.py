"""Messages <-> bytes: a sans-I/O state machine, checks and limits. No torch, no sockets."""

from bitseam.wire.checks import same_terms
from bitseam.wire.limits import Limits
from bitseam.wire.protocol import VERSION, Protocol, State

__all__ = ["VERSION", "Limits", "Protocol", "State", "same_terms"]
