"""A real server, an honest client that trains with it, and the same training undisturbed to compare with.

The server is `bitseam serve` over loopback TLS, with a tiny model. Honest and hostile client have certificates and
seats of their own. The hostile one is gRPC's own client, or a bare TLS socket: it knows no limits and no protocol.
"""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import torch
from conftest import Tiny
from tiny_run import write_tiny_run
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError
from bitseam.runs.checkpoint import build_client
from bitseam.runs.optimise import Stepper
from bitseam.sessions.client import ClientSession
from bitseam.sessions.limits import held_bytes
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter
from bitseam.transport import Channel, Tls, connect, memory_pair, split_address
from bitseam.transport.authority import add_client
from bitseam.transport.flow import Assembly, Pieces
from bitseam.wire import VERSION, Limits
from bitseam.wire import messages_pb2 as pb

# Laid over the recipe of `tiny_run`.
RECIPE = """
[seam]
max_tokens = 64
[streams.image]
codec = {id = "entropy-uniform", groups = 2}
[text]
max_tokens = 32
[train]
steps = 10000
batch = 2
accumulate = 2
clients = 2
checkpoint_every = 10000
[network]
metrics = ""
hello_seconds = 2
idle_seconds = 4
"""
SESSIONS = 9  # eight of a hostile client, and an honest one
QUESTIONS, ANSWERS = ("is this a cat ?", "dog ?"), ("yes", "a red cat")
Speak = Callable[[pb.Hello], Any]


class Honest:
    """A client that trains, a step at a time; `losses` are what its server has told."""

    def __init__(self, recipe: config.Recipe, dial: Callable[[], Channel]) -> None:
        torch.manual_seed(1)
        self._recipe, self.model = recipe, build_client(recipe, str)
        self.prompter = Prompter(recipe.text)
        self.losses: list[float] = []
        self._stepper = Stepper(self.model, recipe.client.rate, recipe.train)
        self.session = ClientSession(self.model, dial, self.prompter.vocabulary, patience=20)
        self.terms = terms(recipe, self.model.senders(), self.prompter)
        self.session.open(self.terms, True)
        self.session.calibrate(*self._draw(0))

    def step(self) -> None:
        for micro in range(2):
            number = len(self.losses)
            features, text = self._draw(number + 1)
            part = self.session.step(self.session.reached + 1, micro, micro == 1, features, text)
            self.losses.append(part.loss)
        self._stepper.step(4)

    def _draw(self, number: int) -> tuple[Tensor, TextBatch]:
        pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(number))
        return self.model.vision.features(pixels), self.prompter.batch(QUESTIONS, ANSWERS)


class Server:
    """The process of `bitseam serve`, and what the kernel says of its memory."""

    def __init__(self, log: Path, *words: str) -> None:
        self.log = log
        with log.open("wb") as out:
            command = [sys.executable, "-m", "bitseam.cli.main", "serve", *words]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ))

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split(None, 1)[0]) * 1024

    def told(self) -> str:
        return self.log.read_text(errors="surrogateescape")

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Raw:
    """A hostile session: any bytes out, and what comes back."""

    def __init__(self, address: str, tls: Tls) -> None:
        authority, certificate, key = tls.read()
        self.network = grpc.secure_channel(
            address,
            grpc.ssl_channel_credentials(authority, key, certificate),
            [
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
            ],
        )
        self._out: list[bytes | Iterator[bytes] | None] = []
        self._more = threading.Condition()
        self._pieces, self._assembly = Pieces(plaintext=False), Assembly(plaintext=False)
        self.call = self.network.stream_stream("/bitseam.v1.Seam/Session")(self._feed())

    def say(self, *messages: Any) -> Raw:
        """Messages, or frames of bytes, in the pieces that frames cross in."""
        for message in messages:
            if not isinstance(message, bytes):
                field = type(message).__name__.lower()
                message = pb.Envelope(**{field: message}).SerializeToString(deterministic=True)
            self.pour(self._pieces.cut(message))
        return self

    def pour(self, parts: Iterator[bytes]) -> Raw:
        """Pieces, as they are asked for."""
        with self._more:
            self._out.append(parts)
            self._more.notify()
        return self

    def hear(self, seconds: float = 20) -> Any:
        """The next message; a string that says why none comes."""
        frame, got = None, threading.Event()
        result: list[Any] = []

        def read() -> None:
            try:
                result.append(next(self.call))
            except StopIteration:
                result.append("the server closed the session")
            except grpc.RpcError as error:
                result.append(f"{error.code().name}: {error.details()}")
            got.set()

        while frame is None:
            got.clear()
            threading.Thread(target=read, daemon=True).start()
            assert got.wait(seconds), "the server said nothing"
            piece = result.pop()
            if isinstance(piece, str):
                return piece
            frame = self._assembly.add(piece, 2**30)
        envelope = pb.Envelope.FromString(frame)
        return getattr(envelope, envelope.WhichOneof("body"))

    def end(self, seconds: float = 20) -> str:
        """How the session ends: the reason of the refusal, or why nothing more comes."""
        while not isinstance(heard := self.hear(seconds), str):
            if isinstance(heard, pb.Refuse):
                return f"{pb.Fault.Name(heard.fault)}: {heard.reason}"
        return heard

    def leave(self) -> None:
        with self._more:
            self._out.append(None)
            self._more.notify()
        self.call.cancel()
        self.network.close()

    def _feed(self) -> Iterator[bytes]:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._out)
                parts = self._out.pop(0)
            if parts is None:
                return
            yield from parts


class Arena:
    """The server, the honest client with its undisturbed double, and ways in for a hostile one."""

    def __init__(self, folder: Path, tiny: Tiny) -> None:
        path, plan = write_tiny_run(folder, tiny), folder / "hostile.toml"
        add_client(folder / "certs", "mallory")
        plan.write_text(RECIPE)
        recipe = config.load_recipe(path, plan=plan)
        self.address = recipe.network.address
        _, self.port = split_address(self.address)
        self.server = Server(folder / "server.log", str(path), "--plan", str(plan))
        names = ("ca.pem", "mallory.pem", "mallory.key")
        self.tls = Tls(*(folder / "certs" / name for name in names))
        self._raws: list[Raw] = []
        apart = {"out": str(folder / "double"), "network.idle_seconds": 1e6}
        self._double = ServerParty(config.load_recipe(path, apart, plan), str)
        tls = Tls.from_folder(folder / "certs", "client")
        self.undisturbed = Honest(recipe, self._dial_double)
        self.honest_dial = partial(connect, self.address, tls)
        self._wait()
        self.honest = Honest(recipe, self.honest_dial)
        self.limits: Limits = self._double.limits
        self.codec, self.terms = self._double.model.receivers()["image"].codec(0), self.honest.terms
        self.withstand(lambda arena: None)
        self.largest()
        self.bound = self.server.peak_bytes() + held_bytes(self.limits, SESSIONS)

    def raw(self, *messages: Any) -> Raw:
        """A hostile session that begins with these."""
        self._raws.append(Raw(self.address, self.tls))
        return self._raws[-1].say(*messages)

    def hello(self, **changes: Any) -> pb.Hello:
        return pb.Hello(**{"version": VERSION, "purpose": pb.TRAIN, "terms": self.terms} | changes)

    def welcomed(self) -> Raw:
        """A hostile session that may train."""
        raw = self.raw(self.hello())
        heard = raw.hear()
        assert isinstance(heard, pb.Welcome), heard
        return raw

    def socket(self) -> ssl.SSLSocket:
        """A connection that is past TLS and no farther."""
        context = self.tls.context()
        context.set_alpn_protocols(["h2"])
        return context.wrap_socket(socket.create_connection(("localhost", self.port), 20), server_hostname="localhost")

    def withstand(self, attack: Callable[[Arena], None]) -> int:
        """Train while an attack goes on; returns how many steps. Raises where it was not contained."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                attack(self)
            except BaseException as error:
                failures.append(error)

        attacker, steps = threading.Thread(target=run, daemon=True), 0
        attacker.start()
        deadline = time.monotonic() + 60
        while attacker.is_alive() or steps < 2:
            self.honest.step()
            steps += 1
            assert time.monotonic() < deadline, "the attack does not end"
            time.sleep(0.02)
        for raw in self._raws:
            raw.leave()
        self._raws.clear()
        for _ in range(steps):
            self.undisturbed.step()
        if failures:
            raise failures[0]
        assert self.honest.losses == self.undisturbed.losses
        assert self.server.process.poll() is None
        return steps

    def largest(self) -> None:
        """The largest message that the recipe lets a client send, answered: what it takes is no attack's doing."""
        from hostile_cases import forward  # which needs an arena to make it for

        raw = self.welcomed().say(forward(self, sequences=self.limits.batch, tokens=64, words=32))
        heard = raw.hear(60)
        assert isinstance(heard, pb.Backward), heard
        raw.leave()
        self._raws.clear()

    def end(self) -> None:
        for honest in (self.honest, self.undisturbed):
            with suppress(BitseamError):
                honest.session.__exit__(None, None, None)
        self.server.end()

    def _dial_double(self) -> Channel:
        left, right = memory_pair("client")

        def run() -> None:
            with suppress(BitseamError):
                ServerSession(self._double, right).run()
            right.close()

        threading.Thread(target=run, daemon=True).start()
        return left

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while "listening on" not in self.server.told():
            assert self.server.process.poll() is None, self.server.told()
            assert time.monotonic() < deadline
            time.sleep(0.05)
