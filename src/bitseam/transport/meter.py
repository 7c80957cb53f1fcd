"""How many bytes this process's sockets to a peer have carried, from the kernel's own count (Linux TCP_INFO).

gRPC hides its sockets, so they are found among the process's open files by the peer's address.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
import threading

# Where struct tcp_info of linux/tcp.h has bytes_received, and bytes_sent with bytes_retrans (since Linux 4.19).
_RECEIVED, _SENT = 128, 200
_SIZE = _SENT + 2 * 8
_FILES = "/proc/self/fd"

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_LOOPBACK = ipaddress.IPv4Address("127.0.0.1")


class Meter:
    """Bytes sent and received over the connection to a peer at `host`, a name or an address, and `port`.

    The first `read` that finds the connection settles which it is; what has been read is kept after it has closed.
    """

    def __init__(self, host: str, port: int) -> None:
        # A name may have several addresses, and gRPC takes the one that it likes.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._peers = {(_address(info[4][0]), info[4][1]) for info in found}
        self._others: set[str] = set()
        self._ours: str | None = None
        self._counted: tuple[int, int] | None = None
        self._lock = threading.Lock()

    def skip_present(self) -> None:
        """The connections to the peer that there are now belong to other sessions of this process."""
        self._others = set(self._connections())

    def read(self) -> tuple[int, int] | None:
        """(sent, received), retransmissions not counted; None where the system does not tell."""
        with self._lock:
            for name, counted in self._connections().items():
                if name not in self._others and self._ours in (None, name):
                    self._ours, self._counted = name, counted
            return self._counted

    def _connections(self) -> dict[str, tuple[int, int]]:
        """This process's sockets to the peer, by name, with their counters."""
        found: dict[str, tuple[int, int]] = {}
        if sys.platform != "linux":
            return found
        for handle in os.listdir(_FILES):
            try:
                name = os.readlink(f"{_FILES}/{handle}")  # "socket:[INODE]", which tells one from its successor
                if name.startswith("socket:") and (counted := self._count(os.dup(int(handle)))):
                    found[name] = counted
            except OSError:
                continue  # closed in the meantime, or listening
        return found

    def _count(self, duplicate: int) -> tuple[int, int] | None:
        with socket.socket(fileno=duplicate) as found:
            if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
                return None
            host, port = found.getpeername()[:2]
            if (_address(host), port) not in self._peers:
                return None
            info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
            if len(info) < _SIZE:
                return None
            sent, again = struct.unpack_from("=QQ", info, _SENT)
            (received,) = struct.unpack_from("=Q", info, _RECEIVED)
            return sent - again, received


def _address(text: str | int) -> _Address:
    address = ipaddress.ip_address(str(text).partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    # gRPC takes "localhost" for ::1 and 127.0.0.1, whatever the system's own names say.
    return _LOOPBACK if address.is_loopback else address
