"""Who may speak: certificates over real TLS, the allow-list and the authority's revocations, while the server runs."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from network import Held, Net

from bitseam.errors import ConfigError, PeerGoneError, UntrustedError
from bitseam.transport import Admission, Quota, Tls, connect, make_certificates
from bitseam.transport.authority import add_client, allow_list, revoke

pytest_plugins = ["network"]


@dataclass
class Door:
    """An authority of the test's own, with clients `one` and `two`, and a list of both."""

    folder: Path

    @property
    def list(self) -> Path:
        return self.folder / "clients.toml"

    def tls(self, role: str) -> Tls:
        return Tls.from_folder(self.folder, role)

    def admission(self) -> Admission:
        return Admission(self.folder / "ca.pem", self.folder / "crl.pem", self.list)

    def certificate(self, name: str) -> bytes:
        """In DER form."""
        return x509.load_pem_x509_certificate((self.folder / f"{name}.pem").read_bytes()).public_bytes(Encoding.DER)

    def admits(self, admission: Admission, name: str = "one") -> bool:
        try:
            return admission.admit(self.certificate(name)) == name
        except UntrustedError:
            return False


@pytest.fixture(scope="module")
def two_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority") / "certs"
    make_certificates(folder, clients=("one", "two"))
    return folder


@pytest.fixture
def door(two_clients: Path, tmp_path: Path) -> Door:
    door = Door(tmp_path / "certs")
    shutil.copytree(two_clients, door.folder)
    door.list.write_text(allow_list(door.folder))
    return door


def wait_for(text: str, caplog: pytest.LogCaptureFixture) -> None:
    deadline = time.monotonic() + 10
    while text not in caplog.text:
        assert time.monotonic() < deadline, f"never logged: {text}\n{caplog.text}"
        time.sleep(0.01)


def mixed(authority: Tls, own: Tls) -> Tls:
    return Tls(authority.authority, own.certificate, own.key)


def test_a_client_that_is_listed_has_the_lists_name(net: Net, held: Held, door: Door) -> None:
    door.list.write_text(allow_list(door.folder).replace('"one"', '"clinic-1"'))
    net.connect(net.serve(held, door.tls("server"), admission=door.admission()), door.tls("one"))
    server = held.next()
    assert server.name == "clinic-1"
    assert server.peer.startswith("client 'one' (SHA-256 ")


def unlist(door: Door) -> None:
    door.list.write_text(allow_list(door.folder).partition("\n\n")[2])


def revoke_in_list(door: Door) -> None:
    door.list.write_text(allow_list(door.folder).replace("\n\n", "\nrevoked = true\n\n"))


def revoke_by_authority(door: Door) -> None:
    revoke(door.folder, "one")


WAYS = pytest.mark.parametrize(
    ("way", "reason"),
    [
        (unlist, "its certificate is not on the allow-list; SHA-256 "),
        (revoke_in_list, "the allow-list has revoked one"),
        (revoke_by_authority, "its certificate was revoked at "),
    ],
)


@WAYS
def test_a_client_that_may_not_speak(
    net: Net, held: Held, door: Door, caplog: pytest.LogCaptureFixture, way: Callable[[Door], None], reason: str
) -> None:
    """The server's log says why, the client learns no more than that it is refused, and others are served."""
    way(door)
    address = net.serve(held, door.tls("server"), admission=door.admission())
    refused = net.connect(address, door.tls("one"))
    with pytest.raises(UntrustedError, match="the server does not let the client of our certificate speak"):
        refused.receive(20)
    (record,) = caplog.records
    assert record.getMessage().startswith("client 'one' (SHA-256 ")
    assert f": refused: {reason}" in record.getMessage()
    stranger = bare_call(address, door.tls("one"))
    assert stranger.code() is grpc.StatusCode.UNAUTHENTICATED
    assert (stranger.details(), list(stranger.trailing_metadata())) == ("", [])
    net.connect(address, door.tls("two"))
    assert held.next().name == "two"
    assert held.arrived.empty()


def bare_call(address: str, tls: Tls) -> grpc.Call:
    """What gRPC gives to a client of anybody's making that sends a frame."""
    authority, certificate, key = tls.read()
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate)) as network:
        call = network.stream_stream("/bitseam.v1.Seam/Session")(iter([b"x"]))
        with pytest.raises(grpc.RpcError):
            list(call)
        return call


@WAYS
def test_a_session_that_runs_is_ended(
    net: Net, held: Held, door: Door, caplog: pytest.LogCaptureFixture, way: Callable[[Door], None], reason: str
) -> None:
    address = net.serve(held, door.tls("server"), admission=door.admission())
    client, other = net.connect(address, door.tls("one")), net.connect(address, door.tls("two"))
    sessions = {channel.name: channel for channel in (held.next(), held.next())}
    way(door)
    with pytest.raises(UntrustedError, match=f"the client may not speak any more: {reason}"):
        sessions["one"].receive(20)
    with pytest.raises(PeerGoneError, match="the server went away") as caught:
        client.receive(20)
    assert reason not in str(caught.value)
    assert f"its session is ended: {reason}" in caplog.text
    other.send(b"x")
    assert sessions["two"].receive(20) == b"x"


def test_a_client_that_does_not_listen_makes_room_too(net: Net, held: Held, door: Door) -> None:
    address, tls = net.serve(held, door.tls("server"), 1, door.admission()), door.tls("one")
    authority, certificate, key = tls.read()
    leave = threading.Event()
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate)) as network:
        call = network.stream_stream("/bitseam.v1.Seam/Session")(iter(leave.wait, True))  # nobody reads what it gives
        server = held.next()
        server.send(bytes(2**25))  # more than the windows of HTTP/2 hold
        unlist(door)
        with pytest.raises(UntrustedError):
            server.receive(20)
        deadline = time.monotonic() + 10
        while held.arrived.empty():
            assert time.monotonic() < deadline
            with contextlib.suppress(PeerGoneError):
                net.connect(address, door.tls("two")).receive(0.2)
        leave.set()
        call.cancel()


def test_a_certificate_that_expires_ends_its_session(net: Net, held: Held, door: Door) -> None:
    add_client(door.folder, "brief", days=4 / 86400)
    door.list.write_text(allow_list(door.folder))
    client = net.connect(net.serve(held, door.tls("server"), admission=door.admission()), door.tls("brief"))
    server = held.next()
    client.send(b"x")
    assert server.receive(20) == b"x"
    with pytest.raises(UntrustedError, match=r"its certificate is valid from .* alone"):
        server.receive(20)


def test_without_a_list_all_clients_of_the_authority_speak_but_the_revoked(
    net: Net, held: Held, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    address = net.serve(held, door.tls("server"))
    assert "no network.allow_list: every client whose certificate" in caplog.text
    net.connect(address, door.tls("one"))
    assert held.next().name == "one"
    revoke(door.folder, "one")
    with pytest.raises(UntrustedError, match="does not let the client of our certificate speak"):
        net.connect(address, door.tls("one")).receive(20)


def test_certificates_that_no_handshake_accepts(
    net: Net, held: Held, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, others, expired = (net.tls("client", folder) for folder in ("ours", "others", "expired"))
    of_the_expired = net.serve(held, mixed(expired, net.tls("server")))  # knows the expired client's authority
    address = net.serve(held, net.tls("server"))
    cases = [
        (address, mixed(ours, others), "others/client.pem", "unable to get local issuer certificate"),
        (address, net.tls("server"), "ours/server.pem", "unsupported certificate purpose"),
        (of_the_expired, mixed(ours, expired), "expired/client.pem", "certificate has expired"),
    ]
    for at, tls, shown, reason in cases:
        with pytest.raises(UntrustedError, match=f"does not accept our certificate .*{shown}") as caught:
            connect(at, tls)
        assert "alert" not in str(caught.value)  # TLS itself would tell the stranger
        assert reason not in str(caught.value)
        wait_for(f"a TLS handshake failed, and nobody was let in: CERTIFICATE_VERIFY_FAILED: {reason}", caplog)
    assert held.arrived.empty()
    assert "Handshake failed" not in capfd.readouterr().err  # once is enough


def test_a_stranger_who_knocks_for_ever_is_told_of_once(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    address = net.serve(tls=net.tls("server"))
    host, _, port = address.partition(":")
    for _ in range(5):
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert stranger.recv(100) == b""
    context = ssl.create_default_context(cafile=net.tls("client").authority)  # a client without a certificate
    plain = socket.create_connection((host, int(port)), timeout=10)
    with context.wrap_socket(plain, server_hostname=host) as nobody:
        assert nobody.recv(100) == b""
    wait_for("nobody was let in: PEER_DID_NOT_RETURN_A_CERTIFICATE", caplog)
    assert caplog.text.count("nobody was let in: HTTP_REQUEST") == 1


def test_a_server_that_we_do_not_trust(net: Net) -> None:
    for folder, reason in (("others", "unable to get local issuer"), ("expired", "certificate has expired")):
        tls = net.tls("client") if folder == "others" else net.tls("client", "expired")
        with pytest.raises(UntrustedError, match=f"we do not trust the server's certificate: {reason}"):
            connect(net.serve(tls=net.tls("server", folder)), tls)


def test_the_list_is_read_anew_when_it_changes(door: Door) -> None:
    admission = door.admission()
    assert door.admits(admission)
    revoke_in_list(door)
    assert not door.admits(admission)
    door.list.write_text(allow_list(door.folder))
    assert door.admits(admission)
    revoke(door.folder, "two")
    assert (door.admits(admission, "one"), door.admits(admission, "two")) == (True, False)


@pytest.mark.parametrize("broken", ["", "[[client]]\nname = ", '[[client]]\nname = "x"\n', "\udcff", None])
def test_a_list_that_breaks_leaves_the_last_good_one(
    door: Door, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    unlist(door)
    admission = door.admission()
    if broken is None:
        door.list.unlink()
    else:
        door.list.write_bytes(broken.encode(errors="surrogateescape"))
    for _ in range(3):
        assert (door.admits(admission, "one"), door.admits(admission, "two")) == (False, True)
    (record,) = caplog.records  # once, though it was asked for more often
    assert record.levelname == "ERROR"
    assert "clients.toml" in record.getMessage()
    assert record.getMessage().endswith("what it said before stays in force")
    with pytest.raises(ConfigError, match=r"clients\.toml"):
        door.admission()  # at the start it must be sound


@pytest.mark.parametrize("broken", ["nonsense", "another authority's", None])
def test_revocations_that_break_leave_the_last_good_ones(
    door: Door, certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    path = revoke(door.folder, "one")
    admission = door.admission()
    if broken is None:
        path.unlink()
    elif broken == "nonsense":
        path.write_text("nonsense")
    else:
        shutil.copytree(certificates / "others", tmp_path / "others")
        path.write_bytes(revoke(tmp_path / "others", "client").read_bytes())
        with pytest.raises(ConfigError, match=r"crl\.pem: cannot be used: not signed by our authority"):
            door.admission()
    assert (door.admits(admission, "one"), door.admits(admission, "two")) == (False, True)
    assert "what it said before stays in force" in caplog.text


def entry(**keys: str) -> str:
    return "[[client]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())


def test_a_subject_a_fingerprint_and_which_of_them_counts(door: Door) -> None:
    one, two = allow_list(door.folder).split("\n\n")
    with_colons = ":".join(a + b for a, b in zip(*[iter(one.split('"')[3].upper())] * 2, strict=True))
    quota = "{ bytes = 1_000, steps = 3, sessions = 2 }"
    door.list.write_text(
        entry(name='"a"', fingerprint=f'"{with_colons}"', quota=quota) + entry(name='"b"', subject='"one"')
    )
    admission = door.admission()
    assert admission.admit(door.certificate("one")) == "a"
    assert admission.quota("a") == Quota(bytes=1000, steps=3, sessions=2)
    assert admission.quota("b") == admission.quota("nobody") == Quota()
    door.list.write_text(entry(name='"b"', subject='"one"') + two)
    assert admission.admit(door.certificate("one")) == "b"
    assert admission.admit(door.certificate("two")) == "two"
    door.list.write_text("client = []")
    assert not door.admits(admission, "two")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (entry(name='"a"'), "give its fingerprint or its subject"),
        (entry(name='"a"', subject='"a"', fingerprint=f'"{"0" * 64}"'), "give its fingerprint or its subject"),
        (entry(name='"a"', fingerprint='"abc"'), "client.0.fingerprint"),
        (entry(name='"../a"', subject='"a"'), "client.0.name"),
        (entry(name='"a"', subject='"a"', revokd="true"), "client.0.revokd"),
        (entry(name='"a"', subject='"a"', quota="{ byte = 1 }"), "client.0.quota.byte"),
        (entry(name='"a"', subject='"a"', quota="{ steps = -1 }"), "client.0.quota.steps"),
        (2 * entry(name='"a"', subject='"a"'), "name a stands there twice"),
        (entry(name='"a"', subject='"c"') + entry(name='"b"', subject='"c"'), "subject c stands there twice"),
    ],
)
def test_faults_of_a_list_are_named(door: Door, text: str, fault: str) -> None:
    door.list.write_text(text)
    with pytest.raises(ConfigError, match=rf"clients\.toml: .*{fault}"):
        door.admission()
