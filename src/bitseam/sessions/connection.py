"""The client's connection to its server, made again where it breaks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from bitseam.errors import BitseamError, PeerGoneError, TransportError
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.peer import Peer
from bitseam.transport import Channel
from bitseam.wire import Limits
from bitseam.wire import messages_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")
_FIRST, _LONGEST = 0.1, 3.0  # seconds: bounds of the wait before a first and a late try


class Connection:
    """One session's channels, one at a time; the ledger counts over all of them."""

    def __init__(self, dial: Callable[[], Channel], ledger: Ledger, patience: float) -> None:
        self.limits = Limits()  # of the server, once it has told them
        self._dial, self._ledger, self._patience = dial, ledger, patience
        self._peer: Peer | None = None
        self._session = b""
        self._hello: Callable[[], pb.Hello] = pb.Hello
        self._counted: tuple[int, int] | None = (0, 0)  # by the sockets of earlier connections

    def open(self, hello: Callable[[], pb.Hello]) -> pb.Welcome:
        """Connect for the first time, waiting while nobody listens. Raises TransportError, RefusedError."""
        self._hello = hello
        return self._connect(PeerGoneError)

    def again(self, why: PeerGoneError) -> pb.Welcome:
        """Connect again. Raises TransportError where `patience` seconds do not suffice, RefusedError."""
        log.warning("the link broke: %s", why)
        # A server that we have reached is known to be right, so whatever fails now may pass.
        return self._connect(TransportError)

    def exchange(self, message: Any, answer: type[T]) -> T:
        """Send, and wait for an answer. Raises PeerGoneError where the link breaks before it is here."""
        return self._open_peer().exchange(message, answer)

    def stream(self, question: pb.Ask) -> Iterator[list[int]]:
        """Send a question; its answer's token ids as they come."""
        peer = self._open_peer()
        peer.send(question)
        last = False
        while not last:
            tokens = peer.receive()
            last = tokens.last
            if tokens.ids:
                yield list(tokens.ids)

    def close(self, reason: str) -> None:
        """Say goodbye, with the reason where something failed."""
        if self._peer is not None:
            with suppress(BitseamError):  # a peer that is gone must not hide why we leave
                self._peer.say_goodbye(reason)
            self._hang_up()

    def socket_bytes(self) -> tuple[int, int] | None:
        """(sent, received) over all connections; None where the system does not tell."""
        now = self._peer.channel.socket_bytes() if self._peer is not None else (0, 0)
        if now is None or self._counted is None:
            return None
        return self._counted[0] + now[0], self._counted[1] + now[1]

    def _connect(self, passing: type[TransportError]) -> pb.Welcome:
        tries = Retrying(
            retry=retry_if_exception_type(passing),
            # Full jitter, so that clients which lost a server together do not come back together.
            wait=wait_random_exponential(multiplier=_FIRST, max=_LONGEST),
            stop=stop_after_delay(self._patience),
            before_sleep=_tell,
            reraise=True,
        )
        return tries(self._shake_hands)

    def _shake_hands(self) -> pb.Welcome:
        self._hang_up()
        self._peer = Peer(self._dial(), "client", self._ledger)
        hello = self._hello()
        hello.session = self._session
        welcome = self._peer.exchange(hello, pb.Welcome)
        self._session, self.limits = welcome.session, self._peer.limits
        return welcome

    def _hang_up(self) -> None:
        if self._peer is not None:
            self._peer.channel.close()
            self._counted = self.socket_bytes()
            self._peer = None

    def _open_peer(self) -> Peer:
        if self._peer is None:
            raise PeerGoneError("no connection to the server")
        return self._peer


def _tell(tried: RetryCallState) -> None:
    error = tried.outcome.exception() if tried.outcome is not None else None
    wait = tried.next_action.sleep if tried.next_action is not None else 0.0
    log.warning("no server yet (try %d: %s); trying again in %.1f s", tried.attempt_number, error, wait)
