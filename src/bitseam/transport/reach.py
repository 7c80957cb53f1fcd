"""Before gRPC is tried: whether a server is there, and whether both sides trust each other.

gRPC tells little of why it cannot connect, so that this is found out with Python's own TLS.
"""

from __future__ import annotations

import logging
import socket
import ssl

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_fixed

from bitseam.errors import PeerGoneError, TransportError, UntrustedError
from bitseam.transport.address import join_address
from bitseam.transport.certs import Tls
from bitseam.transport.ports import RISK, is_loopback, require_loopback

log = logging.getLogger(__name__)

_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # RFC 9113, 3.4
_SETTINGS = b"\4"  # the type of the frame that greets back
_HANDSHAKES, _PAUSE = 3, 0.1  # seconds between tries of a handshake
_READY = 10.0  # seconds for a connection


def require_tls(host: str, tls: Tls | None, exposed: bool) -> None:
    """Raise TransportError for plaintext with another machine, unless it is `exposed` on purpose: that is a warning."""
    if tls is not None:
        return
    if not exposed:
        require_loopback(host)
    elif not is_loopback(host):
        allowed = "network.plaintext_that_anyone_can_read_and_change has allowed it"
        log.warning("PLAINTEXT with %s: %s. %s", host, RISK, allowed)


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
