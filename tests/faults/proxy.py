"""A TCP proxy that breaks what passes through it, by a plan.

    python tests/faults/proxy.py localhost:50051 --port 50052 --seed 1 --rounds 3 --gap 50000

Bytes are counted by direction over all connections. Where a fault's number has passed since the fault before it, it
strikes in the middle of what is passing; what follows is clean until the next. One thread, asyncio; no pipe of the
proxy waits for another.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, get_args

log = logging.getLogger(__name__)

Direction = Literal["up", "down"]
Kind = Literal[
    "reset",  # the connection ends at once, unsent bytes lost (TCP RST)
    "close",  # it ends in order, though in the middle of a frame (TCP FIN)
    "delay",  # a direction stands still for `seconds`
    "duplicate",  # a chunk comes twice
    "reorder",  # the second half of a chunk comes before the first
    "truncate",  # the rest of a chunk is lost; later bytes follow
    "flip",  # one bit changes
    "half-open",  # nothing crosses any more either way, and nobody is told
    "throttle",  # for `seconds`, a direction is as slow as `Proxy.trickle`
    "black-hole",  # reset; then, for `seconds`, connections are taken and nothing is ever said
    "refuse",  # reset; then, for `seconds`, nobody listens
]
KINDS: tuple[Kind, ...] = get_args(Kind)
HARMLESS: tuple[Kind, ...] = ("delay", "throttle")  # all bytes arrive, late


@dataclass(frozen=True)
class Fault:
    """after: bytes that pass in its direction since the fault before."""

    kind: Kind
    direction: Direction
    after: int
    seconds: float = 1.0


def draw_faults(
    seed: int, gap: int, rounds: int = 1, kinds: Sequence[Kind] = KINDS, seconds: float = 1.0
) -> list[Fault]:
    """Each kind once a round, in random order, direction and place: `gap` bytes apart, half as many to half as many
    again. `seconds`: the longest that a fault lasts, and half of it the shortest."""
    rng = random.Random(seed)
    directions: tuple[Direction, ...] = get_args(Direction)
    return [
        Fault(kind, rng.choice(directions), rng.randint(gap // 2, gap + gap // 2), rng.uniform(0.5 * seconds, seconds))
        for _ in range(rounds)
        for kind in rng.sample(kinds, len(kinds))
    ]


@dataclass(eq=False)
class _Link:
    """A client's connection and the one to the server that goes with it."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    silent: bool = False
    closing: bool = False

    def reset(self) -> None:
        for writer in self.writers:
            _reset(writer)

    def finish(self) -> None:
        self.closing = True
        for writer in self.writers:
            with suppress(OSError):
                writer.write_eof()


class Proxy:
    """Listens on a free port of loopback, or on `port`, and forwards to `server`, "host:port". A context manager.

    trickle: bytes a second of a throttled direction. `fired` are the faults that have struck, in order.
    """

    def __init__(self, server: str, faults: Iterable[Fault] = (), port: int = 0, trickle: int = 20_000) -> None:
        host, _, number = server.rpartition(":")
        self._server = (host.strip("[]"), int(number))
        self._faults = deque(faults)
        self._passed = 0  # bytes in the next fault's direction
        self._trickle = trickle
        self._links: set[_Link] = set()
        self._slow_until: dict[Direction, float] = {"up": 0.0, "down": 0.0}  # by the loop's clock
        self._answering = asyncio.Event()
        self._answering.set()
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self.fired: list[Fault] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def left(self) -> int:
        """Faults that have not struck yet."""
        return len(self._faults)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port, reuse_address=True)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._faults.clear()
        self._listener.close()
        for link in self._links:
            link.reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link([writer])
        self._links.add(link)
        try:
            if not self._answering.is_set():
                await self._answering.wait()
                return
            there, to_server = await asyncio.open_connection(*self._server)
            link.writers.append(to_server)
            await asyncio.gather(self._pump(link, "up", reader, to_server), self._pump(link, "down", there, writer))
        except (OSError, asyncio.CancelledError):  # a side has reset, the server is not there, or we stop
            pass
        finally:
            link.reset()
            self._links.discard(link)

    async def _pump(
        self, link: _Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                while data and not (link.silent or link.closing):
                    clean, data = self._split(direction, data)
                    await self._forward(direction, clean, writer)
                    if data:
                        data = await self._strike(link, data)
                if link.silent:
                    break
        except OSError:
            if not link.silent:
                raise
        if link.silent:
            await asyncio.Event().wait()  # until the proxy stops: the other side is not told even where this one goes
        writer.write_eof()

    async def _forward(self, direction: Direction, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            slow = self._loop.time() < self._slow_until[direction]
            size = max(self._trickle // 20, 1) if slow else len(data)
            writer.write(data[:size])
            await writer.drain()
            if slow:
                await asyncio.sleep(size / self._trickle)
            data = data[size:]

    def _split(self, direction: Direction, data: bytes) -> tuple[bytes, bytes]:
        """What passes before the next fault strikes, and the rest: empty where it does not strike in `data`."""
        if not self._faults or self._faults[0].direction != direction:
            return data, b""
        clean = max(self._faults[0].after - self._passed, 0)
        if len(data) < clean + 2:  # two bytes: what can be reordered
            self._passed += len(data)
            return data, b""
        return data[:clean], data[clean:]

    async def _strike(self, link: _Link, data: bytes) -> bytes:
        """Let the next fault have `data`; returns what of it is still to be forwarded. Raises where the link ends."""
        fault = self._faults.popleft()
        self._passed = 0
        self.fired.append(fault)
        log.info("fault %d: %s, %s, after %d bytes", len(self.fired), fault.kind, fault.direction, fault.after)
        match fault.kind:
            case "delay":
                await asyncio.sleep(fault.seconds)
            case "throttle":
                self._slow_until[fault.direction] = self._loop.time() + fault.seconds
            case "duplicate":
                return data + data
            case "reorder":
                return data[len(data) // 2 :] + data[: len(data) // 2]
            case "truncate":
                return b""
            case "flip":
                return bytes([data[0] ^ 1 << fault.after % 8]) + data[1:]
            case "half-open":
                link.silent = True
            case "close":
                link.finish()
            case "black-hole":
                self._answering.clear()
                self._loop.call_later(fault.seconds, self._answering.set)
                raise ConnectionResetError
            case "refuse":
                self._listener.close()
                self._loop.create_task(self._listen_later(fault.seconds))
                raise ConnectionResetError
            case "reset":
                raise ConnectionResetError
        return data

    async def _listen_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._listen()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side gets RST, where it is not closed already."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="host:port")
    parser.add_argument("--port", type=int, default=0, help="to listen on; a free one by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="of all kinds")
    parser.add_argument("--gap", type=int, default=50_000, help="bytes between faults, about")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a fault lasts, at the most")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    faults = draw_faults(options.seed, options.gap, options.rounds, options.kinds, options.seconds)
    with Proxy(options.server, faults, options.port) as proxy:
        log.info("listening on %s for %s", proxy.address, options.server)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
