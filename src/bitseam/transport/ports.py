"""Where a server may listen: ports that are free, and hosts that plaintext is for."""

from __future__ import annotations

import errno
import ipaddress
import socket

from bitseam.errors import AddressInUseError, TransportError
from bitseam.transport.address import join_address, split_address

RISK = "without TLS, anyone on the way reads and changes what crosses, and anyone may speak"


def require_port(host: str, port: int) -> None:
    """Raise AddressInUseError unless every address of `host` is free: gRPC is content with one of them.

    Raises TransportError where no address of it is this machine's, or this user may not have the port.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise TransportError(f"{host}: cannot listen there: {error}") from error
    unusable: list[OSError] = []
    for family, kind, protocol, _, address in found if port else []:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: a server may return at once
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUseError(
                    f"{join_address(host, port)}: the port is in use by another process; choose another"
                ) from error
            unusable.append(error)
    if unusable and len(unusable) == len(found):
        raise TransportError(f"{join_address(host, port)}: cannot listen there: {unusable[0].strerror}")


def metrics_address(address: str) -> tuple[str, int]:
    """`network.metrics` -> the host and port that metrics are served at."""
    host, port = split_address(address, "network.metrics")
    return "127.0.0.1" if host == "localhost" else host, port


def require_loopback(host: str) -> None:
    """Raise TransportError for a host that plaintext is not for, unless a recipe says otherwise."""
    if not is_loopback(host):
        raise TransportError(
            f"{host}: {RISK}; set network.certificates (`bitseam certs` makes a development set). Plaintext is for "
            "loopback alone, unless network.plaintext_that_anyone_can_read_and_change says otherwise"
        )


def is_loopback(host: str) -> bool:
    """Whether what is sent to it stays on this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
