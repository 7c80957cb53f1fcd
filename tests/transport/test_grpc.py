"""Sessions over gRPC: how they end, who is let in, and where a server may listen."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from network import Held, Net, echo

from bitseam.errors import AddressInUseError, PeerGoneError, TransportError, UntrustedError
from bitseam.transport import Channel, Listener, Tls, connect

pytest_plugins = ["network"]

PEER = """
import sys, time
from bitseam.transport import Listener, Tls, connect
role, address, folder = sys.argv[1:]
tls = Tls.from_folder(folder, role)
def echo(channel):
    while True:
        channel.send(channel.receive())
if role == "server":
    listener = Listener(address, echo, tls)
    listener.start()
    print(listener.port, flush=True)
    time.sleep(60)
else:
    channel = connect(address, tls)
    echo(channel)
"""


@pytest.fixture
def other(net: Net, request: pytest.FixtureRequest):
    """Starts the other side as a process of its own, and sees to its end."""
    started: list[subprocess.Popen[str]] = []

    def start(role: str, address: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PEER, role, address, str(net.certificates / "ours")]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_server_is_missed(net: Net, other) -> None:
    process = other("server", "localhost:0")
    channel = net.connect(f"localhost:{process.stdout.readline().strip()}", net.tls("client"))
    channel.send(b"x")
    assert channel.receive(20) == b"x"
    counted = channel.socket_bytes()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(PeerGoneError, match="the server went away"):
        channel.receive(10)
    with pytest.raises(PeerGoneError, match="the server went away"):
        channel.send(b"x")
    assert channel.socket_bytes() >= counted  # what was seen is kept


def test_a_killed_client_is_missed(net: Net, held: Held, other) -> None:
    process = other("client", net.serve(held, net.tls("server")))
    channel = held.next()
    channel.send(b"x")
    assert channel.receive(20) == b"x"
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(PeerGoneError, match="the client went away"):
        channel.receive(10)
    with pytest.raises(PeerGoneError, match="the client went away"):
        channel.send(b"x")


def test_a_handler_that_raises_ends_its_session_alone(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    def handler(channel: Channel) -> None:
        channel.send(b"hello")
        if channel.receive(20) == b"break":
            raise ValueError("planted")
        echo(channel)

    address = net.serve(handler)
    broken, sound = net.connect(address), net.connect(address)
    broken.send(b"break")
    sound.send(b"go on")
    assert broken.receive(20) == sound.receive(20) == b"hello"
    with pytest.raises(PeerGoneError, match="the server went away"):
        broken.receive(20)
    sound.send(b"x")
    assert sound.receive(20) == b"x"
    (record,) = caplog.records
    assert "planted" in str(record.exc_info[1])
    assert record.getMessage().startswith("client at ")


def test_stop_ends_the_sessions(net: Net, held: Held) -> None:
    client = net.connect(net.serve(held))
    server = held.next()
    net.listeners[0].stop()
    for channel in (client, server):
        with pytest.raises(PeerGoneError, match="went away"):
            channel.receive(20)
    with pytest.raises(PeerGoneError, match="no server there"):
        connect(f"localhost:{net.listeners[0].port}", None)


def test_sessions_run_side_by_side_up_to_their_number(net: Net, held: Held) -> None:
    address = net.serve(held, sessions=2)
    first, second = net.connect(address), net.connect(address)
    held.next().send(b"1")
    held.next().send(b"2")
    third = net.connect(address)
    with pytest.raises(PeerGoneError, match="limit exceeded"):
        third.receive(20)
    held.release.set()
    for channel in (first, second):
        assert channel.receive(20) in (b"1", b"2")
        channel.close()
    assert held.arrived.empty()


def test_no_server(net: Net) -> None:
    with socket.socket() as taken:  # bound but not listening
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(PeerGoneError, match=f"127.0.0.1:{taken.getsockname()[1]}: no server there"):
            connect(f"127.0.0.1:{taken.getsockname()[1]}", None)


def test_both_sides_are_named_with_their_certificates(net: Net, held: Held) -> None:
    client = net.connect(net.serve(held, net.tls("server")), net.tls("client"))
    assert client.peer.startswith("server 'server' (SHA-256 ")
    server = held.next()
    assert server.peer.startswith("client 'client' (SHA-256 ")
    assert (client.name, server.name) == ("server", "client")


def test_in_plaintext_nobody_has_a_name(net: Net, held: Held) -> None:
    client = net.connect(net.serve(held))
    assert (client.name, held.next().name) == ("", "")


def test_a_certificate_for_another_host(net: Net, tmp_path: Path) -> None:
    from bitseam.transport import make_certificates

    make_certificates(tmp_path, hosts=("seam.example",))
    address = net.serve(tls=Tls.from_folder(tmp_path, "server"))
    with pytest.raises(UntrustedError, match="not valid for 'localhost'"):
        connect(address, Tls.from_folder(tmp_path, "client"))


def test_tls_on_one_side_alone(net: Net) -> None:
    with pytest.raises(TransportError, match="no TLS there"):
        connect(net.serve(), net.tls("client"))
    with pytest.raises(TransportError, match="no plaintext HTTP/2 there"):
        connect(net.serve(tls=net.tls("server")), None)


@pytest.mark.parametrize("address", ["192.0.2.1:5000", "0.0.0.0:5000", "seam.example:5000", "[::]:5000"])
def test_plaintext_is_for_loopback_alone(address: str) -> None:
    for attempt in (lambda: connect(address, None), lambda: Listener(address, echo, None)):
        with pytest.raises(TransportError, match="without TLS, anyone on the way reads"):
            attempt()


def test_plaintext_elsewhere_is_a_risk_that_is_taken_and_told(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener("0.0.0.0:0", echo, None, exposed=True)
    listener.start()
    net.listeners.append(listener)
    net.channels.append(channel := connect(f"0.0.0.0:{listener.port}", None, exposed=True))
    channel.send(b"x")
    assert channel.receive(20) == b"x"
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 2
    for text in warned:
        assert text.startswith("PLAINTEXT with 0.0.0.0: without TLS, anyone on the way reads and changes what crosses")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "127.3.2.1:0"])
def test_loopback_addresses(net: Net, address: str) -> None:
    try:
        listener = Listener(address, echo, None)
    except TransportError:
        pytest.skip(f"this machine has no {address}")
    listener.start()
    net.listeners.append(listener)
    channel = net.connect(f"{address.rpartition(':')[0]}:{listener.port}")
    channel.send(b"x")
    assert channel.receive(20) == b"x"
    if sys.platform == "linux":
        assert channel.socket_bytes() is not None


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":5000", "localhost:http", "localhost:65536", ""])
def test_addresses_of_another_form(address: str) -> None:
    for attempt in (lambda: connect(address, None), lambda: Listener(address, echo, None)):
        with pytest.raises(TransportError, match="write host:port"):
            attempt()


@pytest.mark.parametrize("taker", ["a server of ours", "anything on one of the addresses"])
def test_a_port_in_use(net: Net, taker: str) -> None:
    with socket.socket() as stranger:
        if taker == "a server of ours":
            address = net.serve()
        else:
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            address = f"localhost:{stranger.getsockname()[1]}"
        with pytest.raises(AddressInUseError, match=f"{address}: the port is in use"):
            Listener(address, echo, None)


def test_a_port_is_free_again_after_stop(net: Net) -> None:
    address = net.serve()
    channel = net.connect(address)
    channel.send(b"x")
    assert channel.receive(20) == b"x"
    net.stop()
    net.listeners.append(Listener(address, echo, None))


def test_a_host_that_is_none_of_this_machine(net: Net) -> None:
    with pytest.raises(TransportError, match="cannot listen there"):
        Listener("192.0.2.1:0", echo, net.tls("server"))
