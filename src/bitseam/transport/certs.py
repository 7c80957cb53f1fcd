"""Certificates: the files that a side shows and trusts by, in one folder, and what they say."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID, PublicKeyAlgorithmOID

from bitseam.errors import TransportError

_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_BROKEN_HASHES = ("md5", "sha1")
# What Python's OpenSSL and gRPC's BoringSSL both take, as tried.
_SIGNING = ("P-224", "P-256", "P-384", "P-521", "Ed25519", "RSA of 2048 to 8192 bits")  # certificates
_SHAKING_HANDS = ("P-256", "P-384", "RSA of 2048 to 8192 bits")


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
        return tls

    @property
    def revocations(self) -> Path:
        """The authority's list of revoked certificates; it need not be there."""
        return self.authority.parent / "crl.pem"

    def require_current(self) -> Tls:
        """Itself. Raises TransportError where no peer would take the certificate or its authority at this time."""
        _require_some(self.authority, read_certificates(self.authority), _out_of_date)
        _require_some(self.certificate, read_certificates(self.certificate)[:1], _out_of_date)
        return self

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Contents of authority, certificate and key, which fit each other. Raises TransportError."""
        try:
            contents = self.authority.read_bytes(), self.certificate.read_bytes(), self.key.read_bytes()
        except OSError as error:
            raise TransportError(
                f"{error.filename}: {error.strerror}; `bitseam certs FOLDER` makes a development set, and "
                "network.certificates names it"
            ) from error
        require_private(self.key)
        _require_unmarked(self.key, contents[2])
        _require_some(self.authority, read_certificates(self.authority), _cannot_sign)
        shown, *chain = read_certificates(self.certificate)
        _require_some(self.certificate, [shown], _cannot_shake_hands)
        for certificate in chain:
            _require_some(self.certificate, [certificate], _cannot_sign)
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


def read_certificates(path: Path) -> list[x509.Certificate]:
    """All that a PEM file holds, one at least. Raises TransportError that names it."""
    try:
        raw = path.read_bytes()
        _require_unmarked(path, raw)
        return x509.load_pem_x509_certificates(raw)
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}; `bitseam certs FOLDER` makes an authority") from error
    except ValueError as error:
        raise TransportError(f"{path}: not a certificate in PEM form: {error}") from error


def _require_unmarked(path: Path, raw: bytes) -> None:
    if raw.startswith(_BYTE_ORDER_MARKS):
        raise TransportError(f"{path}: begins with a byte order mark, which is not PEM; save it as plain text without")


def _require_some(
    path: Path, certificates: list[x509.Certificate], fault_of: Callable[[x509.Certificate], str]
) -> None:
    """Raise TransportError where each of the certificates has a fault."""
    faults = [fault_of(certificate) for certificate in certificates]
    if all(faults):
        raise TransportError(f"{path}: {faults[0]}")


def _out_of_date(certificate: x509.Certificate) -> str:
    begin, end, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    if begin <= now <= end:
        return ""
    what = "is not valid yet" if now < begin else "has expired"
    return f"this certificate {what}: it is valid from {begin} to {end}, and this machine's clock says {now:%F %T}"


def _cannot_sign(certificate: x509.Certificate) -> str:
    return _unusable(certificate, _SIGNING)


def _cannot_shake_hands(certificate: x509.Certificate) -> str:
    hashed = certificate.signature_hash_algorithm
    if hashed is not None and hashed.name in _BROKEN_HASHES:
        return f"this certificate is signed by way of {hashed.name}, which TLS does not take; sign it with SHA-256"
    return _unusable(certificate, _SHAKING_HANDS)


def _unusable(certificate: x509.Certificate, usable: tuple[str, ...]) -> str:
    kind = _kind(certificate)
    if kind in usable:
        return ""
    return f"TLS here cannot use its key, {kind}; make one of {', '.join(usable)} (`bitseam certs` takes P-256)"


def _kind(certificate: x509.Certificate) -> str:
    """Of its key: as in `_SIGNING`, or what it is instead."""
    if certificate.public_key_algorithm_oid == PublicKeyAlgorithmOID.RSASSA_PSS:
        return "RSA for RSASSA-PSS alone"
    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError):
        return f"of the algorithm {certificate.public_key_algorithm_oid.dotted_string}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return re.sub(r"^secp(224|256|384|521)r1$", r"P-\1", key.curve.name)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA of {'2048 to 8192' if 2048 <= key.key_size <= 8192 else key.key_size} bits"
    return type(key).__name__.removesuffix("PublicKey")


def describe(certificate: bytes) -> str:
    """A certificate in DER form -> its subject's common name, quoted since a peer chose it, and its fingerprint."""
    return f"{common_name(certificate)!r} (SHA-256 {fingerprint(certificate)[:16]})"


def common_name(certificate: bytes) -> str:
    """A certificate in DER form -> its subject's common name, "" where it has none."""
    names = x509.load_der_x509_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def fingerprint(certificate: bytes) -> str:
    """A certificate in DER form -> its SHA-256 in hex, 64 digits."""
    return hashlib.sha256(certificate).hexdigest()


def require_private(key: Path) -> None:
    """Raise TransportError where a private key of ours can be read by others, as ssh refuses it.

    Another user's file is left to its owner: a service may be given its key by way of a group.
    """
    if os.name != "posix":
        return
    status = key.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        raise TransportError(
            f"{key}: other users of this machine can read this private key, so it is not used: `chmod 600 {key}`, and "
            "make a new one if they are not to be trusted"
        )
