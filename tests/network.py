"""Servers, clients and certificates for the tests, as fixtures: a test module names this one in `pytest_plugins`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bitseam.errors import PeerGoneError
from bitseam.transport import Admission, Channel, Listener, Tls, connect, make_certificates
from bitseam.transport.grpc import KEEPALIVE


def echo(channel: Channel) -> None:
    """Send back whatever comes, until the client goes."""
    try:
        while True:
            channel.send(channel.receive(20))
    except PeerGoneError:
        pass


@dataclass
class Net:
    """Starts servers with or without TLS, and connects to them."""

    certificates: Path
    listeners: list[Listener] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)

    def tls(self, role: str, folder: str = "ours") -> Tls:
        return Tls.from_folder(self.certificates / folder, role)

    def serve(
        self,
        handler: Callable[[Channel], None] = echo,
        tls: Tls | None = None,
        sessions: int = 4,
        admission: Admission | None = None,
        keepalive: float = KEEPALIVE,
    ) -> str:
        listener = Listener("localhost:0", handler, tls, sessions, keepalive, admission)
        listener.start()
        self.listeners.append(listener)
        return f"localhost:{listener.port}"

    def connect(self, address: str, tls: Tls | None = None, keepalive: float = KEEPALIVE) -> Channel:
        channel = connect(address, tls, keepalive)
        self.channels.append(channel)
        return channel

    def stop(self) -> None:
        for channel in self.channels:
            channel.close()
        for listener in self.listeners:
            listener.stop()


class Held:
    """A handler that hands its channel to the test and keeps the session until the test lets go."""

    def __init__(self) -> None:
        self.arrived: queue.Queue[Channel] = queue.Queue()
        self.release = threading.Event()

    def __call__(self, channel: Channel) -> None:
        self.arrived.put(channel)
        self.release.wait(20)

    def next(self) -> Channel:
        return self.arrived.get(timeout=10)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder / "ours")
    make_certificates(folder / "others")
    make_certificates(folder / "expired", days=0)  # valid from five minutes ago until now
    return folder


@pytest.fixture
def net(certificates: Path) -> Iterator[Net]:
    net = Net(certificates)
    yield net
    net.stop()


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.release.set()
