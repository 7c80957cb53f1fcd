"""What every channel promises, in memory and over gRPC, plain and with TLS."""

from __future__ import annotations

import threading

import pytest
from network import Held, Net

from bitseam.errors import PeerGoneError
from bitseam.transport import Channel, grpc, memory_pair

pytest_plugins = ["network"]


@pytest.fixture(params=["memory", "plain", "tls"])
def pair(
    request: pytest.FixtureRequest, net: Net, held: Held, monkeypatch: pytest.MonkeyPatch
) -> tuple[Channel, Channel]:
    """A client's end and a server's end."""
    monkeypatch.setattr(grpc, "_FLUSH", 0.1)  # these servers stay where others would end with the client
    if request.param == "memory":
        return memory_pair()
    tls = request.param == "tls"
    client = net.connect(net.serve(held, net.tls("server") if tls else None), net.tls("client") if tls else None)
    return client, held.next()


def test_frames_cross_whole_and_in_order(pair: tuple[Channel, Channel]) -> None:
    frames = [b"", b"x", b"", bytes(range(256)) * 40_000]
    for sender, receiver in (pair, pair[::-1]):
        receiver.most = len(frames[-1])
        for frame in frames:
            sender.send(frame)
        assert [receiver.receive(20) for _ in frames] == frames


def test_nothing_for_a_while_is_told_apart_from_gone(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    for channel in pair:
        with pytest.raises(PeerGoneError, match=r"the peer sent nothing for 0\.05 seconds"):
            channel.receive(0.05)
    client.send(b"still there")
    assert server.receive(20) == b"still there"


@pytest.mark.parametrize("leaver", [0, 1])
def test_who_closes_is_missed_at_once_but_heard_to_the_end(pair: tuple[Channel, Channel], leaver: int) -> None:
    gone, left = pair[leaver], pair[1 - leaver]
    gone.send(b"first")
    gone.send(b"my last words")
    gone.close()
    gone.close()  # once more does no harm
    with pytest.raises(PeerGoneError, match="this channel is closed"):
        gone.send(b"x")
    left.send(b"no error while there is something to hear")
    assert [left.receive(20), left.receive(20)] == [b"first", b"my last words"]
    for _ in range(2):
        with pytest.raises(PeerGoneError, match="went away"):
            left.receive(20)
    with pytest.raises(PeerGoneError, match="went away"):
        left.send(b"x")


def test_a_receiver_that_waits_is_woken_when_the_peer_goes(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    errors: list[PeerGoneError] = []

    def wait() -> None:
        try:
            server.receive()
        except PeerGoneError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    client.close()
    waiter.join(20)
    assert len(errors) == 1
    assert "went away" in str(errors[0])


def test_peers_are_named(pair: tuple[Channel, Channel]) -> None:
    client, server = pair
    assert client.peer.startswith("server ")
    assert server.peer.startswith("client ")


def test_memory_counts_the_frames() -> None:
    client, server = memory_pair()
    client.send(b"12345")
    assert client.socket_bytes() == (5, 0)
    assert server.socket_bytes() == (0, 0)
    server.receive()
    assert server.socket_bytes() == (0, 5)
