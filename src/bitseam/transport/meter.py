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
    """Bytes sent and received over this process's sockets to a peer at `host`, a name or an address, and `port`.

    `read` keeps what it has seen of a socket after that has been closed: call it before closing.
    """

    def __init__(self, host: str, port: int) -> None:
        # A name may have several addresses, and gRPC takes the one that it likes.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._peers = {(_address(info[4][0]), info[4][1]) for info in found}
        self._seen: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def read(self) -> tuple[int, int] | None:
        """(sent, received), retransmissions not counted; None where the system does not tell."""
        if sys.platform != "linux":
            return None
        with self._lock:
            for handle in os.listdir(_FILES):
                try:
                    name = os.readlink(f"{_FILES}/{handle}")  # "socket:[INODE]", which is never used twice
                    if name.startswith("socket:"):
                        self._count(name, os.dup(int(handle)))
                except OSError:
                    continue  # closed in the meantime
            if not self._seen:
                return None
            return sum(sent for sent, _ in self._seen.values()), sum(got for _, got in self._seen.values())

    def _count(self, name: str, duplicate: int) -> None:
        """Take the counters of a socket to the peer; raises OSError for one that listens or has just been closed."""
        with socket.socket(fileno=duplicate) as found:
            if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
                return
            host, port = found.getpeername()[:2]
            if (_address(host), port) not in self._peers:
                return
            info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
            if len(info) == _SIZE:
                sent, again = struct.unpack_from("=QQ", info, _SENT)
                (received,) = struct.unpack_from("=Q", info, _RECEIVED)
                self._seen[name] = sent - again, received


def _address(text: str | int) -> _Address:
    address = ipaddress.ip_address(str(text).partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    # gRPC takes "localhost" for ::1 and 127.0.0.1, whatever the system's own names say.
    return _LOOPBACK if address.is_loopback else address
