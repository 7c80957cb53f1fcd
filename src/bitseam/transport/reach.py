"""Before gRPC is tried: whether an address is ours to listen at, and whether a server is there that we trust.

gRPC tells little of why it cannot, so that each is found out with the system's sockets and Python's own TLS.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import ssl

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_fixed

from bitseam.errors import AddressInUseError, PeerGoneError, TransportError, UntrustedError
from bitseam.transport.address import join_address
from bitseam.transport.certs import Tls

log = logging.getLogger(__name__)

_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # RFC 9113, 3.4
_SETTINGS = b"\4"  # the type of the frame that greets back
_HANDSHAKES, _PAUSE = 3, 0.1  # seconds between tries of a handshake
_READY = 10.0  # seconds for a connection


def require_tls(host: str, tls: Tls | None, exposed: bool) -> None:
    if tls is not None or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    risk = "without TLS, anyone on the way reads and changes what crosses, and anyone may speak"
    if loopback:
        return
    if not exposed:
        raise TransportError(
            f"{host}: {risk}; set network.certificates (`bitseam certs` makes a development set). Plaintext is for "
            "loopback alone, unless network.plaintext_that_anyone_can_read_and_change says otherwise"
        )
    log.warning("PLAINTEXT with %s: %s. network.plaintext_that_anyone_can_read_and_change has allowed it", host, risk)


def require_port(host: str, port: int) -> None:
    """Raise AddressInUseError unless every address of `host` is free: gRPC is content with one of them."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise TransportError(f"{host}: cannot listen there: {error}") from error
    for family, kind, protocol, _, address in found if port else []:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does: a server may come back at once
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AddressInUseError(
                        f"{join_address(host, port)}: the port is in use by another process; choose another"
                    ) from error


def reach(host: str, port: int, tls: Tls | None) -> bytes | None:
    """See that a server listens, and that both sides trust each other; returns its certificate in DER form.

    gRPC tells little of why a handshake failed, so one is made by Python's own TLS first. A server refuses without a
    word; so may a link that breaks, but not several times.
    """
    tries = Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, TransportError) and not isinstance(e, PeerGoneError)),
        wait=wait_fixed(_PAUSE),
        stop=stop_after_attempt(_HANDSHAKES),
        reraise=True,
    )
    return tries(_greet, host, port, tls)


def _greet(host: str, port: int, tls: Tls | None) -> bytes | None:
    try:
        with socket.create_connection((host, port), timeout=_READY) as plain:
            if tls is not None:
                return _shake_hands(plain, host, port, tls)
            _greet_plainly(plain, join_address(host, port))
            return None
    except OSError as error:
        raise PeerGoneError(f"{join_address(host, port)}: no server there: {error}") from error


def _greet_plainly(plain: socket.socket, address: str) -> None:
    plain.sendall(_HTTP2_GREETING)
    if plain.recv(9)[3:4] != _SETTINGS:
        raise TransportError(
            f"{address}: no plaintext HTTP/2 there; a server with network.certificates needs a client with them"
        )


def _shake_hands(plain: socket.socket, host: str, port: int, tls: Tls) -> bytes | None:
    address = join_address(host, port)
    context = tls.context()
    context.set_alpn_protocols(["h2"])
    try:
        secure = context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise UntrustedError(
            f"{address}: we do not trust the server's certificate: {error.verify_message}; the authority that we trust "
            f"is {tls.authority}"
        ) from error
    except ssl.SSLError as error:
        raise TransportError(f"{address}: no TLS there, or none that we speak: {error.reason or error}") from error
    with secure:
        # In TLS 1.3 a server's refusal comes after the handshake; a server that accepts us answers our greeting.
        try:
            secure.sendall(_HTTP2_GREETING)
            answer, why = secure.recv(9), "it closed the connection"
        except TimeoutError:
            raise
        except OSError as error:
            answer, why = b"", str(getattr(error, "reason", None) or error)
        if not answer:
            raise UntrustedError(
                f"{address}: the server does not accept our certificate {tls.certificate}: {why}. The server trusts "
                "another authority, or the certificate is expired or not a client's; its log says which"
            )
        return secure.getpeercert(binary_form=True)
