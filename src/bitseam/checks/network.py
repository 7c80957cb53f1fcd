"""Certificates with their dates, and whether the other side can be reached."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509

from bitseam import config
from bitseam.errors import PeerGoneError, TransportError
from bitseam.transport import Admission, Tls, connect, metrics_address, require_loopback, require_port, split_address

_SOON = timedelta(days=30)


def own_certificates(network: config.Network, side: Literal["client", "server"]) -> Tls | None:
    """The side's own files, None for plaintext. Raises TransportError that names what cannot be used."""
    if network.certificates:
        return Tls.from_folder(network.certificates, side).require_current()
    if not network.plaintext_that_anyone_can_read_and_change:
        require_loopback(split_address(network.address)[0])
    return None


def valid_until(tls: Tls | None) -> str:
    """A line that says until when the authority's and the side's own certificates hold."""
    if tls is None:
        return "none: this side speaks plaintext (network.certificates is empty)"
    dates = {path: _end(path) for path in (tls.certificate, tls.authority)}
    soon = any(date - datetime.now(UTC) < _SOON for date in dates.values())
    listed = ", ".join(f"{path} until {date:%Y-%m-%d}" for path, date in dates.items())
    return listed + ("; renew before it ends, `bitseam certs` makes a development set" if soon else "")


def reach(network: config.Network, tls: Tls | None) -> str:
    """A line that says whether a server answers. Raises TransportError where one does, but not as we trust it."""
    exposed = network.plaintext_that_anyone_can_read_and_change
    try:
        channel = connect(network.address, tls, network.keepalive, exposed)
    except PeerGoneError as error:
        return f"no server runs there now: {error}"
    channel.close()
    return f"{channel.peer} answers"


def _end(path: Path) -> datetime:
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def may_speak(network: config.Network, tls: Tls | None) -> Admission | None:
    """Who may, by the authority, its revocations and the allow-list; None in plaintext, where anyone may."""
    if tls is None:
        return None
    return Admission(tls.authority, tls.revocations, Path(network.allow_list) if network.allow_list else None)


def require_free(network: config.Network) -> None:
    """Raise AddressInUseError where another process listens at the recipe's address, or TransportError where a server
    cannot listen there, or not at that of its metrics."""
    require_port(*split_address(network.address))
    if network.metrics:
        try:
            require_port(*metrics_address(network.metrics))
        except TransportError as error:
            raise TransportError(f"network.metrics {error}") from error
