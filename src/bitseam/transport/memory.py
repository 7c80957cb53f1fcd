"""A channel within one process, for tests and simulations."""

from __future__ import annotations

from bitseam.errors import PeerGoneError
from bitseam.transport.channel import Channel, Inbox


class MemoryChannel(Channel):
    """One of two ends; nothing is added to the frames, so the bytes of the network are those of the frames."""

    def __init__(self, inbox: Inbox, outbox: Inbox, peer: str, name: str = "") -> None:
        self.peer, self.name = peer, name
        self._inbox, self._outbox = inbox, outbox
        self._sent = self._received = 0
        self._closed = False

    @property
    def gone(self) -> bool:
        return self._closed or self._inbox.over

    def send(self, frame: bytes) -> None:
        if self._closed:
            raise PeerGoneError("this channel is closed")
        self._inbox.check()
        self._sent += len(frame)
        self._outbox.put(frame)

    def receive(self, timeout: float | None = None) -> bytes:
        frame = self._inbox.get(timeout)
        self._received += len(frame)
        return frame

    def close(self) -> None:
        self._closed = True
        self._outbox.end("the peer went away")
        self._inbox.end("this channel is closed")

    def socket_bytes(self) -> tuple[int, int]:
        return self._sent, self._received


def memory_pair(client: str = "") -> tuple[MemoryChannel, MemoryChannel]:
    """A client's end and a server's end, which knows the client by the name `client`."""
    up, down = Inbox(), Inbox()
    return MemoryChannel(down, up, "server (in memory)"), MemoryChannel(up, down, "client (in memory)", client)
