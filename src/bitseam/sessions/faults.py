"""Whose fault it is that a session ends, and what the client is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bitseam.errors import BitseamError, CodecError, NonFiniteError, QuotaError, WireError
from bitseam.wire import messages_pb2 as pb


@contextmanager
def theirs() -> Iterator[None]:
    """While this lasts, NaN and infinity come from the client: a CodecError like any other of its bytes."""
    try:
        yield
    except NonFiniteError as error:
        raise CodecError(str(error)) from error


def fault_of(error: Exception) -> tuple[pb.Fault, str]:
    """The fault of what ended a session, and the reason; of an error that is none of ours, its log alone has more."""
    if isinstance(error, QuotaError):
        return pb.OVER_QUOTA, str(error)
    if not isinstance(error, BitseamError):
        return pb.SERVER_ERROR, "internal error; see the server's log"
    client = isinstance(error, WireError | CodecError) and not isinstance(error, NonFiniteError)  # see `theirs`
    return pb.BAD_MESSAGE if client else pb.SERVER_ERROR, str(error)
