"""What a session may hold in memory, whatever its peer sends or does not take."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from network import Held, Net

from bitseam.errors import LimitError, PeerGoneError
from bitseam.transport.channel import Inbox
from bitseam.transport.flow import PIECE, Assembly, Outbox, Places, pieces

pytest_plugins = ["network"]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 5])
def test_frames_cross_in_pieces(size: int) -> None:
    frame = (bytes(range(251)) * (size // 251 + 1))[:size]
    parts = list(pieces(frame))
    assert all(len(part) == PIECE for part in parts[:-1])
    assert len(parts[-1]) < PIECE
    assembly = Assembly()
    for _ in range(2):
        *none, whole = [assembly.add(part, size) for part in parts]
        assert none == [None] * (len(parts) - 1)
        assert whole == frame


def test_a_frame_over_the_most_is_refused_at_the_first_piece_that_shows_it() -> None:
    assembly = Assembly()
    assert assembly.add(bytes(PIECE), PIECE + 1) is None
    with pytest.raises(LimitError, match=f"over {PIECE + 1} bytes"):
        assembly.add(bytes(2), PIECE + 1)


def test_an_outbox_takes_no_more_for_a_peer_that_takes_nothing() -> None:
    outbox = Outbox()
    outbox.put(bytes(5 * PIECE))  # one, however long
    with pytest.raises(PeerGoneError, match=f"does not take what we send: {5 * PIECE + 512} bytes"):
        outbox.put(b"x")
    sent = outbox.pieces()
    assert [len(next(sent)) for _ in range(6)] == [PIECE] * 5 + [0]
    with pytest.raises(PeerGoneError):  # many small ones count too
        for _ in range(10_000):
            outbox.put(b"")


def flood(net: Net, address: str, pieces_out: Iterator[bytes]) -> tuple[grpc.Channel, grpc.Call]:
    """A client of gRPC's own, that knows no limits."""
    authority, certificate, key = net.tls("client").read()
    network = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate))
    return network, network.stream_stream("/bitseam.v1.Seam/Session")(pieces_out)


@pytest.mark.parametrize(("size", "count"), [(2**16, 2), (0, 64)])
def test_an_inbox_has_room_for_little(size: int, count: int) -> None:
    inbox, filled = Inbox(), []

    def fill() -> None:
        while len(filled) < 2 * count:
            inbox.wait_for_room()
            inbox.put(bytes(size))
            filled.append(size)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    thread.join(0.1)
    assert len(filled) == count
    inbox.get(1)
    thread.join(0.1)
    assert len(filled) == count + 1
    inbox.shut()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(PeerGoneError, match="nothing for 0 seconds"):
        inbox.get(0)  # of what came after, nothing is kept


def system_buffers() -> int:
    """Bytes that Linux may let stand in a connection's two ends, by its own tuning: they are not ours to bound."""
    settings = (Path("/proc/sys/net/ipv4") / name for name in ("tcp_rmem", "tcp_wmem"))
    return sum(int(path.read_text().split()[-1]) for path in settings if path.exists()) or 4 * 2**20


def test_a_flood_waits_in_the_client(net: Net, held: Held) -> None:
    size, asked = 2**16, itertools.count()
    stop = threading.Event()

    def endless() -> Iterator[bytes]:
        while not stop.is_set():
            next(asked)
            yield bytes(size)

    network, _call = flood(net, net.serve(held, net.tls("server")), endless())
    with closing(network):
        server = held.next()
        before, now = -1, 0
        while before != now:  # until it stands still
            time.sleep(0.3)
            before, now = now, int(repr(asked)[6:-1])
        assert now * size < 4 * 2**20 + system_buffers()
        deadline = time.monotonic() + 10
        while int(repr(asked)[6:-1]) == now:  # goes on when some has been received
            assert time.monotonic() < deadline
            server.receive(20)
        stop.set()


def test_a_frame_too_long_ends_the_session_by_name(net: Net, held: Held) -> None:
    client = net.connect(net.serve(held))
    server = held.next()
    server.most = PIECE + 10
    client.send(b"x" * (PIECE + 10))
    client.send(b"x" * (PIECE + 11))
    assert len(server.receive(20)) == PIECE + 10
    with pytest.raises(LimitError, match="the peer sent a frame of over"):
        server.receive(20)
    server.send(b"why")
    assert client.receive(20) == b"why"
    client = net.connect(f"localhost:{net.listeners[0].port}")  # and the other way
    client.most = 5
    held.next().send(b"123456")
    with pytest.raises(LimitError, match="over 5 bytes"):
        client.receive(20)


def test_a_client_that_takes_nothing_does_not_keep_its_session(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitseam.transport.grpc._FLUSH", 0.2)
    ended = threading.Event()

    def handler(channel) -> None:
        with contextlib.suppress(PeerGoneError):
            for _ in range(100):
                channel.send(bytes(2**24))
        ended.set()

    address = net.serve(handler, net.tls("server"), sessions=1)
    leave = threading.Event()
    network, _call = flood(net, address, iter(leave.wait, True))  # it reads nothing
    with closing(network):
        assert ended.wait(20)
        deadline = time.monotonic() + 20
        while True:  # the one place is free again
            try:
                net.connect(address, net.tls("client")).receive(0.2)
            except LimitError:
                break  # it is being flooded itself
            except PeerGoneError:
                pass
            assert time.monotonic() < deadline
        leave.set()


def test_one_client_does_not_take_the_places_of_all(net: Net, held: Held) -> None:
    address = net.serve(held, net.tls("server"), sessions=8)
    mine = [net.connect(address, net.tls("client")) for _ in range(4)]
    channels = [held.next() for _ in mine]
    with pytest.raises(PeerGoneError, match="a client may have 4 sessions"):
        net.connect(address, net.tls("client")).receive(20)
    held.release.set()
    for channel in channels:
        with pytest.raises(PeerGoneError):
            channel.receive(20)
    held.release.clear()
    net.connect(address, net.tls("client"))
    held.next()


def test_places_are_counted_by_name() -> None:
    places = Places(2)
    assert [places.take(name) for name in ("a", "a", "a", "b", "", "", "")] == [True, True, False, True] + [True] * 3
    places.free("a")
    assert places.take("a")
    assert not places.take("a")
