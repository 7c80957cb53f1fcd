"""Addresses and names of hosts, as people write them -> as DNS, certificates and gRPC have them."""

from __future__ import annotations

import ipaddress
import re

import idna

from bitseam.errors import TransportError

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")  # of a name; container networks have underscores in theirs
_LONGEST = 253  # characters of a name (RFC 1035, 2.3.4)


def split_address(address: str, key: str = "network.address") -> tuple[str, int]:
    """ "host:port" or "[IPv6]:port" -> host as DNS and certificates have it, without brackets, and port.

    Raises TransportError for anything else; `key` says there where it was written.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise TransportError(f"{key} {address!r}: write host:port, with a port from 0 to 65535")
    try:
        if ":" in host:
            if not (host.startswith("[") and host.endswith("]")):
                raise ValueError("an IPv6 address goes in brackets, as in [::1]:50051; nothing goes before a host")
            ipaddress.IPv6Address(host[1:-1])
            return host[1:-1], int(port)
        return host_name(host), int(port)
    except ValueError as error:
        raise TransportError(f"{key} {address!r}: write host:port: {error}") from error


def join_address(host: str, port: int) -> str:
    """What `split_address` splits, with brackets where they are due."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_name(host: str) -> str:
    """A name or IP address -> the same as DNS has it: letters of other scripts by IDNA (RFC 5891).

    Raises ValueError where there can be no such host.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    name = host
    if not host.isascii():
        try:
            name = idna.encode(host, uts46=True).decode("ascii")
        except UnicodeError as error:  # idna's errors are of this kind
            raise ValueError(f"{host!r} is no name of a host: {error}") from error
    labels = name.removesuffix(".").split(".")
    if len(name) > _LONGEST or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{host!r} is no name of a host")
    if labels[-1].isdigit():
        raise ValueError(f"{host!r} is no IP address, and no name of a host ends with a number")
    return name
