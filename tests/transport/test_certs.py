"""Development certificates: what is written, and what is refused when it is read."""

from __future__ import annotations

import os
import ssl
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from bitseam.cli.main import app
from bitseam.errors import ConfigError, TransportError
from bitseam.transport import Tls, make_certificates
from bitseam.transport.authority import add_client, allow_list, revoke

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


@pytest.mark.parametrize("clients", [("server",), ("ca",), ("crl",), ("a", "a"), ("../a",), ("",)])
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
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_of_ours_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    make_certificates(tmp_path)
    Tls.from_folder(tmp_path, "client")
    for name in ("client", "ca"):
        (tmp_path / f"{name}.key").chmod(mode)
    with pytest.raises(TransportError, match=r"client\.key: other users .* `chmod 600 .*client\.key`"):
        Tls.from_folder(tmp_path, "client")
    with pytest.raises(TransportError, match=r"ca\.key: other users"):
        add_client(tmp_path, "more")
    assert not (tmp_path / "more.pem").exists()


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_new_folder_of_keys_is_the_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    for name in ("there", "sub/new"):
        make_certificates(tmp_path / name)
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o755  # somebody else's choice
    assert (tmp_path / "sub/new").stat().st_mode & 0o777 == 0o700


def test_a_client_is_added_to_the_authority_that_is_there(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    before = (tmp_path / "client.pem").read_bytes()
    add_client(tmp_path, "more")
    load(tmp_path / "more.pem").verify_directly_issued_by(load(tmp_path / "ca.pem"))
    Tls.from_folder(tmp_path, "more")
    assert (tmp_path / "client.pem").read_bytes() == before
    if os.name == "posix":
        assert (tmp_path / "more.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(TransportError, match=r"more\.pem is there already"):
        add_client(tmp_path, "more")


def test_only_the_authority_itself_adds_and_revokes(tmp_path: Path) -> None:
    make_certificates(tmp_path / "a")
    make_certificates(tmp_path / "b")
    (tmp_path / "a/foreign.pem").write_bytes((tmp_path / "b/client.pem").read_bytes())
    for name in ("foreign", "ca"):
        with pytest.raises(TransportError, match="has not signed it"):
            revoke(tmp_path / "a", name)
    (tmp_path / "a/ca.key").write_bytes((tmp_path / "b/ca.key").read_bytes())
    for act in (add_client, revoke):
        with pytest.raises(TransportError, match=r"ca\.key: not the key of .*ca\.pem"):
            act(tmp_path / "a", "client" if act is revoke else "more")
    with pytest.raises(TransportError, match=r"ca\.pem: No such file"):
        add_client(tmp_path / "nowhere", "more")


def test_revoking_writes_a_list_that_grows(tmp_path: Path) -> None:
    make_certificates(tmp_path, clients=("one", "two", "three"))
    authority = load(tmp_path / "ca.pem")
    for names in (["one"], ["one", "two"], ["one", "two"]):
        path = revoke(tmp_path, names[-1])
        found = x509.load_pem_x509_crl(path.read_bytes())
        assert found.is_signature_valid(authority.public_key())
        assert {entry.serial_number for entry in found} == {load(tmp_path / f"{n}.pem").serial_number for n in names}
    assert found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 3


def test_fingerprints_are_an_allow_list(tmp_path: Path) -> None:
    make_certificates(tmp_path, clients=("one", "two"))
    entries = tomllib.loads(allow_list(tmp_path))["client"]
    assert [entry["name"] for entry in entries] == ["one", "two"]
    for entry in entries:
        shown = load(tmp_path / f"{entry['name']}.pem")
        assert entry["fingerprint"] == shown.fingerprint(hashes.SHA256()).hex()


def test_the_command(tmp_path: Path) -> None:
    runner, folder = CliRunner(), str(tmp_path / "certs")
    assert runner.invoke(app, ["certs", folder, "--client", "one"]).exit_code == 0
    words = ["certs", folder, "--add", "two", "--add", "three", "--revoke", "one", "--fingerprints"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0
    listed = tomllib.loads(result.output[result.output.index("[[client]]") :])["client"]
    assert [entry["name"] for entry in listed] == ["one", "three", "two"]
    assert len(x509.load_pem_x509_crl((tmp_path / "certs/crl.pem").read_bytes())) == 1
    assert isinstance(runner.invoke(app, ["certs", folder, "--client", "x", "--add", "y"]).exception, ConfigError)
