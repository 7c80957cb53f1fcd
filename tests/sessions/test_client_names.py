"""Names that authorities give to clients, in all the places where they are kept or shown; and clocks that are set."""

from __future__ import annotations

import json
import shutil
import time
import tomllib
from pathlib import Path

import pytest
from breaking import Server, recipe_in, trained
from conftest import Tiny
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bitseam.errors import ConfigError, TransportError
from bitseam.serve.metrics import Metrics, publish
from bitseam.serve.sessions import Sessions
from bitseam.serve.status import read_status
from bitseam.sessions.quota import Quotas
from bitseam.sessions.server import ServerSession
from bitseam.transport import Admission, make_certificates, memory_pair
from bitseam.transport.authority import allow_list, revoke

NAMES = ["Klinik Süd 1", "🩻 scans", 'a "quoted" \\ {name} [x]', "0.1", "诊所", "two\nlines", ""]


@pytest.mark.parametrize("name", NAMES[:3] + NAMES[-2:])
def test_a_client_of_any_name_trains_and_is_shown(tiny: Tiny, tmp_path: Path, name: str) -> None:
    recipe = recipe_in(tiny, tmp_path / "run")
    server = Server(recipe, name=name)
    server.party.quotas = Quotas(path=tmp_path / "quota.json")
    sessions = Sessions(server.party)
    metrics = Metrics(server.party, sessions)
    server.party.on_step = metrics.on_step
    _, channel = memory_pair(name)
    sessions._here.add(ServerSession(server.party, channel))
    trained(server)
    assert server.failures == []
    assert list(json.loads((tmp_path / "quota.json").read_text())) == [name]
    server.start()  # what is known of the client is read from the checkpoint
    assert list(server.party._known) == [name]

    http, url = publish(metrics, "127.0.0.1:0")
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": url}))
    try:
        _, shown = read_status(tmp_path / "metrics.json", span=0.01)
    finally:
        http.shutdown()
    assert [one.client for one in shown] == [name]


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_makes_no_session_older(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    server = Server(recipe_in(tiny, tmp_path / "run"))
    session = ServerSession(server.party, memory_pair("a")[1])
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + hours * 3600)
    assert 0 <= time.time() - session.since < 60


def called(folder: Path, file: str, name: str) -> bytes:
    """FOLDER/FILE.pem of the authority there, with this common name; in DER form."""
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(authority.not_valid_before_utc)
        .not_valid_after(authority.not_valid_after_utc)
    )
    certificate = builder.sign(key, hashes.SHA256())
    (folder / f"{file}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return certificate.public_bytes(Encoding.DER)


def test_an_allow_list_takes_the_names_that_it_prints(tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs", clients=("one",))
    names = [name for name in NAMES if name and name.isprintable()]
    certificates = []
    for i, name in enumerate(names):
        certificates.append(called(tmp_path / "certs", f"{i}", name))
    listed = allow_list(tmp_path / "certs")
    assert {entry["name"] for entry in tomllib.loads(listed)["client"]} == {*names, "one"}
    (tmp_path / "list.toml").write_text(listed)
    admission = Admission(tmp_path / "certs/ca.pem", tmp_path / "certs/crl.pem", tmp_path / "list.toml")
    assert [admission.admit(one) for one in certificates] == names


@pytest.mark.parametrize("name", ["a/b", "\x1b[31m", "two\nlines", " a ", "\u202ea"])
def test_a_client_whose_name_no_list_takes_is_called_as_its_file(tmp_path: Path, name: str) -> None:
    make_certificates(tmp_path, clients=("one",))
    shown = called(tmp_path, "one", name)
    assert [entry["name"] for entry in tomllib.loads(allow_list(tmp_path))["client"]] == ["one"]
    (tmp_path / "list.toml").write_text(allow_list(tmp_path))
    admission = Admission(tmp_path / "ca.pem", tmp_path / "crl.pem", tmp_path / "list.toml")
    assert admission.admit(shown) == "one"


@pytest.mark.parametrize("name", ["../one", "a\0", "ca", "", "\x1b[2J", "x" * 300])
def test_a_name_that_is_no_client_is_not_revoked(tmp_path: Path, name: str) -> None:
    make_certificates(tmp_path / "certs", clients=("one",))
    shutil.copy(tmp_path / "certs/one.pem", tmp_path / "one.pem")
    with pytest.raises(TransportError):
        revoke(tmp_path / "certs", name)
    assert not (tmp_path / "certs/crl.pem").exists()


@pytest.mark.parametrize("name", ["", " a", "two\\nlines", "x" * 65])
def test_an_allow_list_takes_no_name_that_cannot_be_shown(tmp_path: Path, name: str) -> None:
    make_certificates(tmp_path / "certs")
    (tmp_path / "list.toml").write_text(f'[[client]]\nname = "{name}"\nsubject = "client"\n')
    with pytest.raises(ConfigError, match=r"list\.toml: client\.0\.name"):
        Admission(tmp_path / "certs/ca.pem", tmp_path / "certs/crl.pem", tmp_path / "list.toml")
