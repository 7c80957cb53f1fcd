"""Certificates: the files that a side shows and trusts by, in one folder, and what they say."""

from __future__ import annotations

import hashlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from bitseam.errors import TransportError


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
