"""Development certificates: what is written, and what is refused when it is read."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from bitseam.errors import TransportError
from bitseam.transport import Tls, make_certificates

pytest_plugins = ["network"]


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_what_is_written(tmp_path: Path) -> None:
    make_certificates(tmp_path, hosts=("seam.example", "192.0.2.7"), clients=("one", "two"), days=10)
    names = {"ca", "server", "one", "two"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{n}.{end}" for n in names for end in ("pem", "key")}
    authority, server = load(tmp_path / "ca.pem"), load(tmp_path / "server.pem")
    for name in names:
        certificate = load(tmp_path / f"{name}.pem")
        certificate.verify_directly_issued_by(authority)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        assert (usage.key_cert_sign, usage.digital_signature) == ((True, False) if name == "ca" else (False, True))
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)
        assert 10 <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() / 86400 < 10.1
        if os.name == "posix":
            assert (tmp_path / f"{name}.key").stat().st_mode & 0o777 == 0o600
    hosts = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["seam.example"]
    assert [str(ip) for ip in hosts.get_values_for_type(x509.IPAddress)] == ["192.0.2.7"]


@pytest.mark.parametrize("role", ["server", "client"])
def test_strict_checkers_accept_them(certificates: Path, role: str) -> None:
    """Python 3.13 checks as strictly as RFC 5280 by default."""
    ours = certificates / "ours"
    parties = {}
    for side, protocol in (("server", ssl.PROTOCOL_TLS_SERVER), ("client", ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(protocol)
        context.load_verify_locations(ours / "ca.pem")
        context.load_cert_chain(ours / f"{side}.pem", ours / f"{side}.key")
        context.verify_mode = ssl.CERT_REQUIRED
        if side == role:
            context.verify_flags |= ssl.VERIFY_X509_STRICT
        parties[side] = context
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        parties["client"].wrap_bio(down, up, server_hostname="localhost"),
        parties["server"].wrap_bio(up, down, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "client.key").write_text("precious")
    with pytest.raises(TransportError, match=r"client\.key is there already"):
        make_certificates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["client.key"]
    assert (tmp_path / "client.key").read_text() == "precious"


@pytest.mark.parametrize("clients", [("server",), ("ca",), ("a", "a")])
def test_clients_need_names_of_their_own(tmp_path: Path, clients: tuple[str, ...]) -> None:
    with pytest.raises(TransportError, match="a name of its own"):
        make_certificates(tmp_path / "new", clients=clients)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("missing", ["ca.pem", "client.pem", "client.key"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    make_certificates(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(TransportError, match=f"{missing}: No such file"):
        Tls.from_folder(tmp_path, "client")


def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    (tmp_path / "client.key").write_bytes((tmp_path / "server.key").read_bytes())
    with pytest.raises(TransportError, match=r"client\.pem and .*client\.key: not a certificate and its key"):
        Tls.from_folder(tmp_path, "client")
    (tmp_path / "ca.pem").write_text("nonsense")
    with pytest.raises(TransportError, match=r"ca\.pem: not a certificate"):
        Tls.from_folder(tmp_path, "server")


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_key_that_others_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    make_certificates(tmp_path)
    Tls.from_folder(tmp_path, "client")
    assert not caplog.records
    (tmp_path / "client.key").chmod(0o640)
    Tls.from_folder(tmp_path, "client")
    assert "client.key: other users of this machine may read this key" in caplog.text
