"""One session of two connections with a tiny model, as it crosses in plaintext.

Recorded at the server's end of the in-memory transport, and cut into the pieces that gRPC would carry. The ids that are
random elsewhere are fixed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from frame_cases import fields_of

sys.path.append(str(Path(__file__).parent.parent))
from conftest import Tiny, make_recipe, make_tiny

from bitseam import config
from bitseam.errors import BitseamError, PeerGoneError
from bitseam.runs.checkpoint import build_client
from bitseam.sessions.client import ClientSession
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.text.prompts import Prompter
from bitseam.transport import Channel, memory_pair
from bitseam.transport.flow import Pieces
from bitseam.wire import messages_pb2 as pb

SESSION, RUN = bytes(range(16)), bytes(range(16, 32))
COMPUTED = {"Calibrate", "Forward", "Backward", "Ask", "Tokens"}  # from floats, or compressed by zlib
NOTES = {
    "Hello": ("purpose, terms and no checkpoints", "the same, with the session: the connection broke"),
    "Welcome": ("a new run at step 0, and the limits", "the session goes on where it was"),
    "Calibrate": ("statistics of the stream, and the dictionary of texts",),
    "Checkpoint": ("the state after calibration is step 0",),
}


@contextmanager
def server() -> Iterator[tuple[config.Recipe, ServerParty]]:
    """A fresh server of the recorded recipe, in a folder of its own; names of checkpoints are relative to it."""
    back = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.chdir(folder)
            make_tiny(Path())
            recipe = make_recipe(
                Tiny("vision", "language", "llava", "tokenizer"), train__accumulate=2, seam__max_tokens=8, out="run"
            )
            party = ServerParty(recipe, str)
            party.run = RUN.hex()
            with mock.patch("bitseam.sessions.seat.secrets.token_bytes", return_value=SESSION):
                yield recipe, party
        finally:
            os.chdir(back)


@dataclass
class Recorded(Channel):
    """Another channel, whose frames are kept."""

    whole: Channel
    rows: list[dict[str, Any]]
    call: int
    cut: dict[str, Pieces] = field(default_factory=lambda: {way: Pieces(plaintext=True) for way in ("up", "down")})

    def __post_init__(self) -> None:
        self.peer, self.name = self.whole.peer, self.whole.name

    @property
    def gone(self) -> bool:
        return self.whole.gone

    def send(self, frame: bytes) -> None:
        self._keep("down", frame)
        self.whole.send(frame)

    def receive(self, timeout: float | None = None) -> bytes:
        frame = self.whole.receive(timeout)
        self._keep("up", frame)
        return frame

    def close(self) -> None:
        self.whole.close()

    def socket_bytes(self) -> tuple[int, int] | None:
        return self.whole.socket_bytes()

    def _keep(self, direction: str, frame: bytes) -> None:
        envelope = pb.Envelope.FromString(frame)
        message = getattr(envelope, envelope.WhichOneof("body"))
        kind = type(message).__name__
        row = {"call": self.call, "direction": direction, "message": kind}
        note = NOTES.get(kind, ())[self.call - 1 : self.call]
        if note:
            row["what"] = note[0]
        pieces = [piece.hex() for piece in self.cut[direction].cut(frame)]
        self.rows.append(row | {"computed": kind in COMPUTED, "fields": fields_of(message), "pieces": pieces})


class Breaking(Recorded):
    """The client's end, where the fifth message of the first call, a whole step's Backward, does not arrive."""

    heard = 0

    def receive(self, timeout: float | None = None) -> bytes:
        frame = self.whole.receive(timeout)
        self.heard += 1
        if self.call == 1 and self.heard == 5:
            self.whole.close()
            raise PeerGoneError("the connection breaks before the answer is here")
        return frame

    def _keep(self, direction: str, frame: bytes) -> None:
        pass


def dialling(party: ServerParty, rows: list[dict[str, Any]], threads: list[threading.Thread]) -> Callable[[], Channel]:
    """Opens a call, each in its turn."""

    def serve(channel: Channel) -> None:
        with suppress(BitseamError):
            ServerSession(party, channel).run()
        channel.close()

    def dial() -> Channel:
        if threads:
            threads[-1].join()
        client, server = memory_pair()
        call = len(threads) + 1
        threads.append(threading.Thread(target=serve, args=(Recorded(server, rows, call),)))
        threads[-1].start()
        return Breaking(client, rows, call)

    return dial


def rows() -> list[dict[str, Any]]:
    """The frames of the session, in order."""
    found: list[dict[str, Any]] = []
    threads: list[threading.Thread] = []
    with server() as (recipe, party):
        torch.manual_seed(1)
        model, prompter = build_client(recipe, str), Prompter(recipe.text)
        pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(2))
        text = prompter.batch(["is this a cat ?", "what is there ?"], ["yes", "a red cat"])
        with ClientSession(model, dialling(party, found, threads), prompter.vocabulary, patience=20) as client:
            client.open(terms(recipe, model.senders(), prompter), True)
            features = model.vision.features(pixels)
            client.calibrate(features, text)
            client.checkpoint(0)
            client.step(1, 0, False, features, text)
            client.step(1, 1, True, features, text)
            list(client.ask(features[:1], prompter.batch(["is this a dog ?"]), 3))
        threads[-1].join()
    lost = [row for row in found if row["call"] == 1][-1]
    lost["what"] = "it does not arrive: the connection breaks"
    return found
