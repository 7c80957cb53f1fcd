"""The proxy does to bytes what its faults say, and a channel through it gives right frames or an error."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from network import Net
from proxy import HARMLESS, KINDS, Direction, Fault, Kind, Proxy, draw_faults

from bitseam.errors import PeerGoneError
from bitseam.transport import Channel

pytest_plugins = ["network"]

DATA = bytes(range(200))


@contextmanager
def plain_server() -> Iterator[tuple[str, list[bytes], threading.Event]]:
    """Keeps what each connection sent until it ended; `ended` is set when one has."""
    received: list[bytes] = []
    ended = threading.Event()

    def take(connection: socket.socket) -> None:
        received.append(b"")
        here = len(received) - 1
        with connection:
            try:
                while data := connection.recv(1000):
                    received[here] += data
            except ConnectionResetError:
                received[here] += b"RESET"
        ended.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=take, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", received, ended
        listener.shutdown(socket.SHUT_RDWR)


def dial(address: str, patience: float = 0.0) -> socket.socket:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=5)
        except ConnectionRefusedError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "arrived"),
    [
        ("delay", DATA),
        ("throttle", DATA),
        ("duplicate", DATA + DATA[50:]),
        ("reorder", DATA[:50] + DATA[125:] + DATA[50:125]),
        ("truncate", DATA[:50]),
        ("flip", DATA[:50] + bytes([DATA[50] ^ 4]) + DATA[51:]),
    ],
)
def test_bytes_that_arrive(kind: Kind, arrived: bytes) -> None:
    with plain_server() as (address, received, ended), Proxy(address, [Fault(kind, "up", 50, 0.2)], 0, 1000) as proxy:
        start = time.perf_counter()
        with dial(proxy.address) as client:
            client.sendall(DATA)
            client.shutdown(socket.SHUT_WR)
            assert ended.wait(5)
        assert received == [arrived]
        assert [fault.kind for fault in proxy.fired] == [kind]
        assert time.perf_counter() - start >= (0.15 if kind in HARMLESS else 0)


@pytest.mark.parametrize("kind", ["reset", "close", "half-open", "black-hole", "refuse"])
def test_connections_that_end(kind: Kind) -> None:
    with plain_server() as (address, received, ended), Proxy(address, [Fault(kind, "up", 50, 0.4)]) as proxy:
        with dial(proxy.address) as client:
            client.sendall(DATA)
            client.settimeout(0.3)
            if kind == "close":
                assert client.recv(1) == b""
            else:
                with pytest.raises(TimeoutError if kind == "half-open" else ConnectionResetError):
                    client.recv(1)
        if kind == "half-open":
            assert not ended.wait(0.1)  # the client has gone, and the server is not told
            assert received == [DATA[:50]]
        else:
            assert ended.wait(5)
            assert received == [DATA[:50]] if kind == "close" else received[0].endswith(b"RESET")
        if kind == "refuse":
            with pytest.raises(ConnectionRefusedError):
                dial(proxy.address)
        if kind == "black-hole":
            with dial(proxy.address) as client:
                client.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    client.recv(1)
        time.sleep(0.4 if kind == "black-hole" else 0)
        ended.clear()
        with dial(proxy.address, patience=2) as client:  # what follows is clean
            client.sendall(DATA)
            client.shutdown(socket.SHUT_WR)
            assert ended.wait(5)
        assert received[-1] == DATA


def test_faults_wait_for_their_direction_and_their_bytes() -> None:
    faults = [Fault("truncate", "down", 10), Fault("flip", "up", 120), Fault("flip", "up", 30)]
    with plain_server() as (address, received, ended), Proxy(address, faults) as proxy:
        for _ in range(3):
            ended.clear()
            with dial(proxy.address) as client:
                client.sendall(DATA)
                client.shutdown(socket.SHUT_WR)
                assert ended.wait(5)
        assert (received, proxy.left) == ([DATA] * 3, 3)  # nothing has come down


def test_plans_are_seeded_and_whole() -> None:
    faults = draw_faults(3, 1000, rounds=2)
    assert faults == draw_faults(3, 1000, rounds=2) != draw_faults(4, 1000, rounds=2)
    assert sorted(fault.kind for fault in faults) == sorted(2 * KINDS)
    assert {fault.direction for fault in faults} == {"up", "down"}
    assert all(500 <= fault.after <= 1500 for fault in faults)


def reach(net: Net, address: str) -> Channel:
    """Connect, over mutual TLS, once the proxy lets us."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return net.connect(address, net.tls("client"), keepalive=0.3)
        except PeerGoneError:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kind", ["close", "flip", "black-hole"])
def test_a_handshake_that_breaks_is_no_refusal(net: Net, kind: Kind, direction: Direction) -> None:
    for after in (300, 1500, 2300):
        server = net.serve(tls=net.tls("server"), keepalive=0.3)
        with Proxy(server, [Fault(kind, direction, after, 0.2)]) as proxy:
            channel = reach(net, proxy.address)
            channel.close()
            assert proxy.fired or after > 1500


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_gives_right_frames_or_an_error(net: Net, kind: Kind, direction: str) -> None:
    """Over mutual TLS. A fault comes in the middle of a frame, some of them after the handshake's."""
    frames = [bytes([number]) * 20_000 for number in range(4)]
    server = net.serve(tls=net.tls("server"), keepalive=0.3)
    with Proxy(server, [Fault(kind, direction, 50_000, 0.3)]) as proxy:
        channel = net.connect(proxy.address, net.tls("client"), keepalive=0.3)
        answers, trouble = [], ""
        try:
            for frame in frames:
                channel.send(frame)
                answers.append(channel.receive(10))
        except PeerGoneError as error:
            trouble = str(error)
        assert answers == frames[: len(answers)]
        assert (len(answers) == 4) == (not trouble) == (kind in HARMLESS)
        assert "sent nothing" not in trouble  # noticed by the channel, not by our patience
        assert len(proxy.fired) == 1
        again = reach(net, proxy.address)
        again.send(b"x")
        assert again.receive(10) == b"x"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_plaintext_gives_right_frames_or_none(net: Net, direction: Direction) -> None:
    """Nothing but our checksum tells a bit of a payload from another; a length that has changed may end in silence."""
    rng = random.Random(0)
    frames = [rng.randbytes(3_000) for _ in range(3)]
    kinds: list[Kind] = [*6 * ("flip",), "duplicate", "reorder"]
    told: list[str] = []

    def echo(channel: Channel) -> None:
        try:
            while (frame := channel.receive(20)) in frames:
                channel.send(frame)
            told.append("a wrong frame")
        except PeerGoneError as error:
            told.append(str(error))

    with Proxy(net.serve(echo), [Fault(kind, direction, rng.randint(3_500, 9_000)) for kind in kinds]) as proxy:
        while proxy.left:
            channel = net.connect(proxy.address)
            answers = []
            try:
                for frame in frames:
                    channel.send(frame)
                    answers.append(channel.receive(0.3))
            except PeerGoneError as error:
                told.append(str(error))
            channel.close()
            assert answers == frames[: len(answers)]
    assert "a wrong frame" not in told
    assert sum("checksum of a Piece does not fit" in reason for reason in told) >= 3
