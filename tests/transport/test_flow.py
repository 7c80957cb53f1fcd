"""What a session may hold in memory, whatever its peer sends or does not take."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from network import Held, Net

from bitseam.errors import LimitError, MalformedError, PeerGoneError
from bitseam.transport.channel import Inbox
from bitseam.transport.flow import PIECE, Assembly, Outbox, Pieces, Places
from bitseam.wire import messages_pb2 as pb

pytest_plugins = ["network"]


def piece(**fields: Any) -> bytes:
    return pb.Piece(**fields).SerializeToString()


@pytest.mark.parametrize("plaintext", [False, True])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 5])
def test_frames_cross_in_pieces(size: int, plaintext: bool) -> None:
    frame = (bytes(range(251)) * (size // 251 + 1))[:size]
    cutter, assembly, told = Pieces(plaintext), Assembly(plaintext), 0
    for _ in range(2):
        parts = list(cutter.cut(frame))
        *none, whole = [assembly.add(part, size) for part in parts]
        assert none == [None] * (len(parts) - 1)
        assert whole == frame
        read = [pb.Piece.FromString(part) for part in parts]
        assert all(len(part.data) == PIECE for part in read[:-1])
        assert [part.last for part in read] == [False] * (len(read) - 1) + [True]
        told = zlib.crc32(frame, told) if plaintext else 0
        assert [part.crc for part in read] == [0] * (len(read) - 1) + [told]
        assert sum(map(len, parts)) - size <= 6 * len(parts) + (5 if plaintext else 0)  # what crossing costs


def test_a_frame_may_come_in_pieces_of_any_size() -> None:
    assembly = Assembly(plaintext=False)
    sizes = [1, PIECE, 7, 0]
    for _ in range(2):
        parts = [piece(data=b"x" * size, last=not size) for size in sizes]
        assert [assembly.add(part, PIECE + 8) for part in parts] == [None, None, None, b"x" * (PIECE + 8)]


BAD_PIECES = [
    (b"\xff", "a gRPC message of 1 bytes that is no Piece"),
    (b"plain bytes", "a Piece with fields that this version does not know"),
    (piece(data=b"x", last=True) + b"\xfa\x7f\x01x", "a Piece with fields that this version does not know"),
    (piece(), "a Piece without data that is not the last of its frame"),
    (piece(data=b"x", crc=1), "the checksum of a Piece does not fit"),
    (piece(data=b"x", last=True, crc=1), "the checksum of a Piece does not fit"),
]


@pytest.mark.parametrize(("bad", "complaint"), BAD_PIECES)
def test_what_is_no_piece_is_named_and_in_plaintext_may_be_damage(bad: bytes, complaint: str) -> None:
    with pytest.raises(MalformedError, match=complaint):
        Assembly(plaintext=False).add(bad, 100)
    with pytest.raises(PeerGoneError, match=f"damaged on the way: .*{complaint}"):
        Assembly(plaintext=True).add(bad, 100)


@pytest.mark.parametrize("plaintext", [False, True])
def test_a_piece_that_is_too_large_is_refused(plaintext: bool) -> None:
    with pytest.raises(LimitError, match=f"a Piece of {PIECE + 1} bytes of data; the limit is {PIECE}"):
        Assembly(plaintext).add(piece(data=bytes(PIECE + 1)), 3 * PIECE)


FRAMES = [b"first", bytes(range(256)) * (PIECE // 128), b"last"]  # the second in two pieces


HARM: dict[str, Callable[[list[bytes]], Any]] = {
    "a piece lost": lambda sent: sent[:1] + sent[2:],
    "a frame lost": lambda sent: [sent[0], sent[3]],
    "the first frame lost": lambda sent: sent[1:],
    "a frame twice": lambda sent: [sent[0], *sent],
    "a piece twice": lambda sent: [*sent[:2], *sent[1:]],
    "a piece moved": lambda sent: [sent[1], sent[0], *sent[2:]],
    "a frame moved": lambda sent: [sent[0], sent[3], *sent[1:3]],
    "a byte changed": lambda sent: [sent[0], sent[1][:900] + b"!" + sent[1][901:], *sent[2:]],
    "an end lost": lambda sent: [sent[0].replace(b"\x10\x01", b"\x10\x00"), *sent[1:]],
    "an end made": lambda sent: [sent[0], sent[1] + b"\x10\x01", *sent[2:]],
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_in_plaintext_nothing_is_lost_repeated_moved_or_changed_unseen(harm: Callable[[list[bytes]], Any]) -> None:
    cutter, assembly = Pieces(plaintext=True), Assembly(plaintext=True)
    sent = [part for frame in FRAMES for part in cutter.cut(frame)]
    assert [frame for part in sent if (frame := assembly.add(part, 2**22)) is not None] == FRAMES
    assembly, came = Assembly(plaintext=True), []
    with pytest.raises(PeerGoneError, match="checksum"):
        for part in harm(sent):
            came.append(assembly.add(part, 2**22))
    came = [frame for frame in came if frame is not None]
    assert came == FRAMES[: len(came)]


def test_a_frame_over_the_most_is_refused_at_the_first_piece_that_shows_it() -> None:
    assembly = Assembly(plaintext=False)
    assert assembly.add(piece(data=bytes(PIECE)), PIECE + 1) is None
    with pytest.raises(LimitError, match=f"over {PIECE + 1} bytes"):
        assembly.add(piece(data=bytes(2)), PIECE + 1)


def test_damage_ends_the_call_by_name(net: Net) -> None:
    """A client that forgets its checksums is told so."""
    with grpc.insecure_channel(net.serve()) as network:
        call = network.stream_stream("/bitseam.v1.Seam/Session")(iter([piece(data=b"x", last=True)]))
        with pytest.raises(grpc.RpcError):
            list(call)
        assert call.code() is grpc.StatusCode.DATA_LOSS
        assert "the checksum of a Piece does not fit" in call.details()


def test_an_outbox_takes_no_more_for_a_peer_that_takes_nothing() -> None:
    outbox = Outbox(plaintext=False)
    outbox.put(bytes(5 * PIECE))  # one, however long
    with pytest.raises(PeerGoneError, match=f"does not take what we send: {5 * PIECE + 512} bytes"):
        outbox.put(b"x")
    sent = outbox.pieces()
    assert [len(pb.Piece.FromString(next(sent)).data) for _ in range(5)] == [PIECE] * 5
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
            yield piece(data=bytes(size), last=True)

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
