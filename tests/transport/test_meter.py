"""`socket_bytes` against a relay between client and server that counts for itself."""

from __future__ import annotations

import socket
import sys
import threading
import time

import pytest
from network import Held, Net, echo

from bitseam.transport import connect, meter

pytest_plugins = ["network"]

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counters are read on Linux alone")


class Relay:
    """Passes TCP connections on to `port`; `counts` has [up, down] bytes for each connection."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.counts: list[list[int]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            count = [0, 0]
            self.counts.append(count)
            for way, (source, sink) in enumerate(((near, far), (far, near))):
                threading.Thread(target=self._pass_on, args=(source, sink, count, way), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket, count: list[int], way: int) -> None:
        try:
            while data := source.recv(65536):
                count[way] += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listening.close()


@linux
@pytest.mark.parametrize("secure", [False, True])
def test_the_count_is_that_of_the_relay(net: Net, held: Held, secure: bool) -> None:
    address = net.serve(held, net.tls("server") if secure else None)
    relay = Relay(int(address.rpartition(":")[2]))
    client = net.connect(f"127.0.0.1:{relay.port}", net.tls("client") if secure else None)
    server = held.next()
    frame = bytes(300_000)
    server.most = len(frame)
    for _ in range(5):
        client.send(frame)
        server.receive(20)
        server.send(frame[:1000])
        client.receive(20)
    held.release.set()  # the server ends the session; then all has crossed
    with pytest.raises(Exception, match="went away"):
        client.receive(20)
    up, down = client.socket_bytes() or (0, 0)
    until = time.monotonic() + 10
    while relay.counts[-1][0] < up and time.monotonic() < until:  # what the client has sent may be on the way there
        time.sleep(0.01)
    print(relay.counts, up, down, server.socket_bytes())
    relayed_up, relayed_down = relay.counts[-1]  # the first connection is the one that tries the server
    # After the last frame gRPC may still acknowledge and ping: frames of 17 bytes, 22 more with TLS.
    assert relayed_up - 200 <= up <= relayed_up
    assert relayed_down - 200 <= down <= relayed_down
    received, sent = (server.socket_bytes() or (0, 0))[::-1]
    assert relayed_up - 200 <= received <= relayed_up
    assert relayed_down - 200 <= sent <= relayed_down
    assert up > 5 * 300_000
    assert 5 * 1000 < down < 20_000
    client.close()
    assert client.socket_bytes() == (up, down)
    relay.close()


@linux
def test_each_session_has_its_own_count(net: Net, held: Held) -> None:
    address = net.serve(held)
    first = net.connect(address)
    one = held.next()
    second = net.connect(address)
    two = held.next()
    first.send(bytes(100_000))
    one.receive(20)
    second.send(b"x")
    two.receive(20)
    for large, small in ((one, two), (first, second)):
        assert sum(large.socket_bytes() or (0, 0)) > 100_000
        assert sum(small.socket_bytes() or (0, 0)) < 1000


def test_none_where_the_system_does_not_tell(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter.sys, "platform", "plan9")
    channel = connect(net.serve(echo), None)
    channel.send(b"x")
    assert channel.receive(20) == b"x"
    assert channel.socket_bytes() is None
    channel.close()
