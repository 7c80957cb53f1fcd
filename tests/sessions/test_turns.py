"""Who may speak: the newest connection of a session, and a client when it is its turn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import batches
from test_reconnect import Server
from torch import Tensor

from bitseam.errors import PeerGoneError, RefusedError
from bitseam.sessions.client import ClientSession
from bitseam.text.batch import TextBatch
from bitseam.wire import messages_pb2 as pb


@pytest.mark.parametrize("kind", ["Calibrate", "Forward", "Checkpoint", "Ask", "Goodbye"])
def test_a_connection_has_no_say_once_its_session_goes_on_elsewhere(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    server = Server(make_recipe(tiny, out=str(tmp_path)))
    with server.client() as session:
        features, text = batches(server.recipe, session)(0)
        session.calibrate(features, text)
        message, _ = forwards(session, features, text)
        old, session._connection._peer = session._connection._peer, None
        session._connection.again(PeerGoneError("the client thinks so"))
        ask = pb.Ask(text=message.text, streams=message.streams, max_new_tokens=1)
        says = {"Calibrate": pb.Calibrate(), "Forward": message, "Checkpoint": pb.Checkpoint(), "Ask": ask}
        old.send(says.get(kind, pb.Goodbye()))
        if kind != "Goodbye":
            with pytest.raises(RefusedError, match=r"bad message.*has come back through another"):
                old.receive(20)
        server.threads[0].join(20)
        session.step(1, 0, True, features, text)  # the seat is still there
        server.party.compute.submit(int).result()
        assert server.party.step == 1
        welcome = session._connection.again(PeerGoneError("once more"))
        assert (welcome.resumed, welcome.step) == (True, 0)  # both go on from where they are


def forwards(session: ClientSession, features: Tensor, text: TextBatch) -> tuple[pb.Forward, pb.Forward]:
    """Those of two steps, as a client would send them that does not wait."""
    with torch.no_grad():
        codes = session.model(features, text)
    both = [pb.Forward(step=n, last=True, text=session._text(text), streams=session._encode(codes)) for n in (1, 2)]
    return both[0], both[1]


@pytest.mark.parametrize("order", ["send, hear, send, hear", "send, send, hear, hear"])
def test_what_a_client_says_too_early_is_read_when_its_turn_comes(tiny: Tiny, tmp_path: Path, order: str) -> None:
    """It is against the protocol, but where it is small the server cannot see it. It is answered as if in turn."""
    server = Server(make_recipe(tiny, out=str(tmp_path)))
    with server.client() as session:
        features, text = batches(server.recipe, session)(0)
        session.calibrate(features, text)
        channel, messages = session._connection._peer.channel, forwards(session, features, text)
        frames = [pb.Envelope(forward=message).SerializeToString() for message in messages]
        answers = []
        for act in order.split(", "):
            if act == "send":
                channel.send(frames.pop(0))
            else:
                answers.append(pb.Envelope.FromString(channel.receive(20)).backward)
        assert [answer.step for answer in answers] == [1, 2]
        assert answers[0].loss != answers[1].loss  # the second is of the half that the first has changed
