"""Certificates that people bring: kinds of keys, dates, and files that are not quite PEM."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from network import Net

from bitseam.errors import TransportError
from bitseam.transport import Tls, make_certificates
from bitseam.transport.authority import add_client, allow_list, revoke

pytest_plugins = ["network"]

KINDS: dict[str, Callable[[], object]] = {
    "P-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
    "RSA of 1024": lambda: rsa.generate_private_key(65537, 1024),
    "RSA of 2048": lambda: rsa.generate_private_key(65537, 2048),
    "DSA": lambda: dsa.generate_private_key(1024),
}


def write_set(folder: Path, authority: str, party: str, begin: int = -1, end: int = 9) -> None:
    """ca, server and client with keys of these kinds. begin, end: of the parties' validity, days from now."""
    folder.mkdir(exist_ok=True)
    now, ca = datetime.now(UTC), KINDS[authority]()
    for name in ("ca", "server", "client"):
        key: object = ca if name == "ca" else KINDS[party]()
        days = (-9, 9) if name == "ca" else (begin, end)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())  # type: ignore[attr-defined]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        hashed = None if authority.startswith("Ed") else hashes.SHA256()
        certificate = builder.sign(ca, hashed)  # type: ignore[arg-type]
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / f"{name}.key").touch(0o600)
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # type: ignore[attr-defined]
        (folder / f"{name}.key").write_bytes(plain)


@pytest.mark.parametrize("kind", ["P-521", "Ed25519", "Ed448", "secp256k1", "P-224", "RSA of 1024", "DSA"])
@pytest.mark.parametrize("role", ["server", "client"])
def test_O4_a_key_that_cannot_shake_hands_is_refused_at_load(tmp_path: Path, role: str, kind: str) -> None:
    write_set(tmp_path, "P-256", kind)
    with pytest.raises(TransportError, match=rf"{role}\.pem: TLS here cannot use its key, {kind}.*P-256, P-384, RSA"):
        Tls.from_folder(tmp_path, role)


@pytest.mark.parametrize("kind", ["Ed448", "secp256k1", "RSA of 1024", "DSA"])
def test_O4_an_authority_that_cannot_sign_for_TLS_is_refused_at_load(tmp_path: Path, kind: str) -> None:
    write_set(tmp_path, kind, "P-256")
    with pytest.raises(TransportError, match=rf"ca\.pem: TLS here cannot use its key, {kind}"):
        Tls.from_folder(tmp_path, "client")


@pytest.mark.parametrize(
    ("authority", "party"),
    [("P-521", "P-384"), ("Ed25519", "P-256"), ("P-224", "RSA of 2048"), ("RSA of 2048", "P-256")],
)
def test_O4_what_is_let_pass_does_shake_hands(net: Net, tmp_path: Path, authority: str, party: str) -> None:
    write_set(tmp_path, authority, party)
    channel = net.connect(net.serve(tls=Tls.from_folder(tmp_path, "server")), Tls.from_folder(tmp_path, "client"))
    channel.send(b"hello")
    assert channel.receive(10) == b"hello"


@pytest.mark.parametrize(("begin", "end", "what"), [(-9, -1, "has expired"), (1, 9, "is not valid yet")])
def test_O4_dates_are_named_at_load(tmp_path: Path, begin: int, end: int, what: str) -> None:
    write_set(tmp_path, "P-256", "P-256", begin, end)
    with pytest.raises(TransportError, match=rf"server\.pem: this certificate {what}: it is valid from 20.* to 20"):
        Tls.from_folder(tmp_path, "server").require_current()


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key"])
@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe"])
def test_O12_a_byte_order_mark_names_the_file(tmp_path: Path, name: str, mark: bytes) -> None:
    make_certificates(tmp_path)
    (tmp_path / name).write_bytes(mark + (tmp_path / name).read_bytes())
    with pytest.raises(TransportError, match=rf"{name}: begins with a byte order mark"):
        Tls.from_folder(tmp_path, "server")


@pytest.mark.parametrize("name", ["ca.pem", "client.pem", "client.key"])
@pytest.mark.parametrize("fault", ["empty", "DER", "folder", "half"])
def test_O12_other_files_that_are_no_PEM_are_named(tmp_path: Path, name: str, fault: str) -> None:
    make_certificates(tmp_path)
    path = tmp_path / name
    raw = path.read_bytes()
    path.unlink()
    if fault == "folder":
        path.mkdir()
    else:
        path.touch(0o600)
        path.write_bytes({"empty": b"", "DER": b"0\x82\1\1", "half": raw[: len(raw) // 2]}[fault])
    with pytest.raises(TransportError, match=name.replace(".", r"\.")):
        Tls.from_folder(tmp_path, "client")


def test_O12_PEM_with_lines_of_Windows_and_text_before_it_works(net: Net, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"Subject: CN=some text\r\n" + raw.replace(b"\n", b"\r\n"))
    channel = net.connect(net.serve(tls=Tls.from_folder(tmp_path, "server")), Tls.from_folder(tmp_path, "client"))
    channel.send(b"hello")
    assert channel.receive(10) == b"hello"


def test_O12_a_key_with_a_password_is_named(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    (tmp_path / "client.key").write_bytes(secret)
    with pytest.raises(TransportError, match=r"client\.key: not a certificate and its key, unencrypted"):
        Tls.from_folder(tmp_path, "client")


def test_O12_what_certs_reads_again_is_named_too(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    (tmp_path / "crl.pem").write_text("nonsense")
    with pytest.raises(TransportError, match=r"crl\.pem: not a list of revoked certificates"):
        revoke(tmp_path, "client")
    (tmp_path / "ca.pem").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "ca.pem").read_bytes())
    for act in (lambda: add_client(tmp_path, "more"), lambda: allow_list(tmp_path)):
        with pytest.raises(TransportError, match=r"ca\.pem: begins with a byte order mark"):
            act()
