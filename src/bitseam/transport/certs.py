"""Certificates: a development authority for two parties, and the files that a side needs for mutual TLS.

FOLDER/ca.pem ca.key            the authority; ca.key signs, and never leaves its machine
FOLDER/server.pem server.key    the server's pair
FOLDER/client.pem client.key    a client's pair; it also needs ca.pem
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bitseam.errors import TransportError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tls:
    """The files that one side shows and trusts by."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def from_folder(cls, folder: str | Path, role: str) -> Tls:
        """ca.pem, and ROLE.pem with ROLE.key. Raises TransportError that names a file that cannot be used."""
        tls = cls(*(Path(folder) / name for name in ("ca.pem", f"{role}.pem", f"{role}.key")))
        tls.read()
        if os.name == "posix" and tls.key.stat().st_mode & 0o077:
            log.warning("%s: other users of this machine may read this key; `chmod 600` it", tls.key)
        return tls

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Contents of authority, certificate and key, which fit each other. Raises TransportError."""
        try:
            contents = self.authority.read_bytes(), self.certificate.read_bytes(), self.key.read_bytes()
        except OSError as error:
            raise TransportError(
                f"{error.filename}: {error.strerror}; `bitseam certs FOLDER` makes a development set, and "
                "network.certificates names it"
            ) from error
        self.context()
        return contents

    def context(self) -> ssl.SSLContext:
        """For a client of Python's own TLS. Raises TransportError where the files are not what they should be."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(self.authority)
        except ssl.SSLError as error:
            raise TransportError(f"{self.authority}: not a certificate in PEM form: {error}") from error
        try:
            context.load_cert_chain(self.certificate, self.key, password="")  # rather than ask at the terminal
        except ssl.SSLError as error:
            raise TransportError(
                f"{self.certificate} and {self.key}: not a certificate and its key, unencrypted, in PEM form: {error}"
            ) from error
        return context


def make_certificates(
    folder: str | Path,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1"),
    clients: Sequence[str] = ("client",),
    days: int = 365,
) -> None:
    """Write an authority, a server's pair for `hosts` and a pair for each client. Keys are readable by the owner alone.

    Raises TransportError where a file is there already: a certificate in use is never replaced by accident.
    """
    names = ["ca", "server", *clients]
    if len(set(names)) != len(names):
        raise TransportError(f"clients: {', '.join(clients)}: each needs a name of its own, other than ca and server")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / f"{name}{end}" for name in names for end in (".pem", ".key")):
        if path.exists():
            raise TransportError(f"{path} is there already; name another folder, or remove it if nothing uses it")
    # A name of its own for each authority, so that two of them are told apart in errors.
    authority_name = _name(f"Bitseam development authority {x509.random_serial_number():x}"[:64])
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = (
        _builder(authority_name, authority_name, authority_key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    _write(folder, "ca", authority, authority_key)
    for name in names[1:]:
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if name == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            _builder(_name(name), authority_name, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )
        if name == "server":
            builder = builder.add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts]), critical=False)
        _write(folder, name, builder.sign(authority_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(authority: bool) -> x509.KeyUsage:
    """An authority signs certificates; a party signs handshakes. Strict checkers (RFC 5280) want it said."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    handle = os.open(folder / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)


def describe(certificate: bytes) -> str:
    """A certificate in DER form -> its subject's common name, quoted since a peer chose it, and its fingerprint."""
    return f"{common_name(certificate)!r} (SHA-256 {hashlib.sha256(certificate).hexdigest()[:16]})"


def common_name(certificate: bytes) -> str:
    """A certificate in DER form -> its subject's common name, empty where it has none."""
    names = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
