"""A development authority: it signs the certificates of a server and its clients, and revokes them.

FOLDER/ca.pem ca.key            the authority; ca.key signs, and never leaves its machine
FOLDER/server.pem server.key    the server's pair
FOLDER/client.pem client.key    a client's pair; it also needs ca.pem
FOLDER/crl.pem                  the certificates that the authority has revoked (RFC 5280, 5), for the server
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bitseam.errors import TransportError
from bitseam.transport.address import host_name
from bitseam.transport.allow import may_name
from bitseam.transport.certs import common_name, fingerprint, read_certificates, require_private

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # a subject's common name has 64 characters at most (RFC 5280, A.1)
_TAKEN = ("ca", "crl", "server")


def make_certificates(
    folder: str | Path,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "::1"),
    clients: Sequence[str] = ("client",),
    days: int = 365,
) -> None:
    """Write an authority, a server's pair for `hosts` and a pair for each client. Keys are readable by the owner alone,
    and so is the folder where it is new.

    hosts: names, IP addresses, or names with * for their first label. Raises TransportError where a file is there
    already: a certificate in use is never replaced by accident; and for names that cannot be, before anything is
    written.
    """
    if len(set(clients)) != len(clients):
        raise TransportError(f"clients: {', '.join(clients)}: each needs a name of its own")
    folder = Path(folder)
    for client in clients:
        _require_name(client)
    for pair in ("ca", "server", *clients):
        _require_absent(folder, pair)
    alternatives = [_host(host) for host in hosts]
    # A name of its own for each authority, so that two of them are told apart in errors.
    name = _name(f"Bitseam development authority {x509.random_serial_number():x}"[:64])
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = _files("ca", certificate, key) | _sign("server", certificate, key, days, alternatives)
    for client in clients:
        files |= _sign(client, certificate, key, days)
    _write(folder, files)


def add_client(folder: str | Path, name: str, days: int = 365) -> None:
    """Write a pair for one more client of the authority in `folder`.

    Raises TransportError where there is no authority, or a file of that name already.
    """
    _require_name(name)
    _require_absent(Path(folder), name)
    _write(Path(folder), _sign(name, *_authority(Path(folder)), days))


def revoke(folder: str | Path, name: str) -> Path:
    """Put NAME.pem on the list of what the authority in `folder` has revoked; returns that list, crl.pem.

    A server that runs reads it anew. Raises TransportError where there is no such certificate of this authority.
    """
    folder = Path(folder)
    if "/" in name or not name.isprintable():
        raise TransportError(f"client {name!r}: give the name of its file in {folder}, without .pem")
    authority, key = _authority(folder)
    certificate = _load(folder / f"{name}.pem")
    if certificate.issuer != authority.subject or certificate == authority:
        raise TransportError(f"{folder / name}.pem: {folder / 'ca.pem'} has not signed it, and cannot revoke it")
    path, now = folder / "crl.pem", datetime.now(UTC)
    before = _revocations(path)
    revoked = list(before) if before is not None else []
    if all(entry.serial_number != certificate.serial_number for entry in revoked):
        fresh = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now)
        revoked.append(fresh.build())
    number = before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number if before is not None else 0
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now)
        .next_update(authority.not_valid_after_utc)  # nothing here writes one by the calendar
        .add_extension(x509.CRLNumber(number + 1), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(entry)
    _write(folder, {path.name: builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)})
    return path


def allow_list(folder: str | Path) -> str:
    """Every client of the authority in `folder`, with its certificate's fingerprint, as an allow-list's text.

    A client is called as its certificate says, or as its file where a list takes no such name.
    """
    authority = _load(Path(folder) / "ca.pem")
    entries = []
    for path in sorted(Path(folder).glob("*.pem")):
        if path.stem not in _TAKEN and (certificate := _load(path)).issuer == authority.subject:
            shown = certificate.public_bytes(Encoding.DER)
            name = common_name(shown)
            quoted = json.dumps(name if may_name(name) else path.stem, ensure_ascii=False)  # a string of TOML, too
            entries.append(f'[[client]]\nname = {quoted}\nfingerprint = "{fingerprint(shown)}"\n')
    return "\n".join(entries)


def _sign(
    name: str,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
    hosts: Sequence[x509.GeneralName] = (),
) -> dict[str, bytes]:
    """The files of a pair for a client, or for a server where there are `hosts`."""
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(_name(name), authority.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    return _files(name, builder.sign(authority_key, hashes.SHA256()), key)


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate, path = _load(folder / "ca.pem"), folder / "ca.key"
    try:
        require_private(path)
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise TransportError(f"{path}: {error.strerror}; it is where `bitseam certs` was first run") from error
    except (ValueError, TypeError) as error:
        raise TransportError(f"{path}: not an unencrypted private key in PEM form: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise TransportError(f"{path}: not the key of {folder / 'ca.pem'}")
    return certificate, key


def _load(path: Path) -> x509.Certificate:
    return read_certificates(path)[0]


def _revocations(path: Path) -> x509.CertificateRevocationList | None:
    try:
        return x509.load_pem_x509_crl(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TransportError(f"{path}: not a list of revoked certificates in PEM form: {error}") from error


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise TransportError(
            f"client {name!r}: a client needs a name of its own, of letters, digits and . _ -, up to 64, other than "
            + ", ".join(_TAKEN)
        )


def _require_absent(folder: Path, name: str) -> None:
    for path in (folder / f"{name}.pem", folder / f"{name}.key"):
        if path.exists():
            raise TransportError(f"{path} is there already; name another folder, or remove it if nothing uses it")


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
    wildcard = host.startswith("*.")
    try:
        name = host_name(host.removeprefix("*.").strip("[]")).removesuffix(".")
        with suppress(ValueError):
            address = ipaddress.ip_address(name)
            if not wildcard:
                return x509.IPAddress(address)
        if wildcard and "." not in name.rstrip("0123456789."):
            raise ValueError("* stands for the first label of a name such as *.example.org")
        return x509.DNSName(f"*.{name}" if wildcard else name)
    except ValueError as error:
        raise TransportError(f"host {host!r}: write a name or an IP address, without a port: {error}") from error


def _files(name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> dict[str, bytes]:
    return {
        f"{name}.pem": certificate.public_bytes(Encoding.PEM),
        f"{name}.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """All of the files, or none where the disk has no room for one; keys for the owner alone.

    Raises TransportError that names the folder.
    """
    there = folder.exists()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
            for name, content in files.items():
                mode = 0o600 if name.endswith(".key") else 0o644
                handle = os.open(Path(new, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
            for name in files:
                Path(new, name).replace(folder / name)  # whole: a server may be reading
    except OSError as error:
        if not there:
            with suppress(OSError):
                folder.rmdir()
        raise TransportError(f"{folder}: cannot be written: {error.strerror or error}") from error
