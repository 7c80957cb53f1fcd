"""One valid message of each kind with its frame as first written down, and a way to every state."""

from __future__ import annotations

from typing import Any

from bitseam.wire import Limits, Protocol, State
from bitseam.wire import messages_pb2 as pb

IMAGE = pb.Coded(shape=[2, 1, 3], payload=b"\x1b\x02")
TEXT = pb.Text(sequences=2, tokens=9, symbols=b"\xaa\xbb")
WEIGHTS = pb.Coded(shape=[2], payload=bytes(8))
DIFFERENCE = pb.Difference(field="f", client="1", server="2")

GOLDEN: dict[type[Any], tuple[Any, str]] = {
    pb.Hello: (
        pb.Hello(version=1, purpose=pb.TRAIN, terms={"seam.width": "32", "codec": "{}"}),
        "0a23080110011a0b0a05636f64656312027b7d1a100a0a7365616d2e776964746812023332",
    ),
    pb.Welcome: (
        pb.Welcome(session=bytes(range(16)), run=bytes(range(16, 32)), step=300, limits=Limits().told()),
        "12690a10000102030405060708090a0b0c0d0e0f1210101112131415161718191a1b1c1d1e1f18ac022a400880"
        "8080800210802018808040208080402880804030ffffffff0f3880204080808080014880800450808080015880"
        "808008608080802069000000000020ac40",
    ),
    pb.Refuse: (
        pb.Refuse(fault=pb.TERMS_DIFFER, reason="no", differences=[DIFFERENCE]),
        "1a11080112026e6f1a090a01661201311a0132",
    ),
    pb.Calibrate: (
        pb.Calibrate(streams=[pb.Statistics(mean=bytes(4), std=b"\0\0\x80?")]),
        "220e0a0c1204000000001a040000803f",
    ),
    pb.Ack: (pb.Ack(step=7), "2a020807"),
    pb.Forward: (
        pb.Forward(step=1, micro=2, last=True, text=TEXT, streams=[IMAGE]),
        "321b0801100218012208080210091a02aabb2a0912030201031a021b02",
    ),
    pb.Backward: (
        pb.Backward(step=1, micro=2, loss=1.5, answer_tokens=3, streams=[IMAGE]),
        "3a1a0801100219000000000000f83f20032a0912030201031a021b02",
    ),
    pb.Checkpoint: (pb.Checkpoint(step=7), "42020807"),
    pb.Average: (pb.Average(step=7, weights=WEIGHTS), "62110807120d1201021a080000000000000000"),
    pb.Averaged: (
        pb.Averaged(step=7, weights=WEIGHTS, clients=3),
        "6a130807120d1201021a0800000000000000001803",
    ),
    pb.Ask: (
        pb.Ask(text=TEXT, streams=[IMAGE], max_new_tokens=8),
        "4a170a08080210091a02aabb120912030201031a021b021808",
    ),
    pb.Tokens: (pb.Tokens(ids=[300, 2]), "52050a03ac0202"),
    pb.Goodbye: (pb.Goodbye(reason="bye"), "5a050a03627965"),
}
ASKING = pb.Hello(version=1, purpose=pb.ASK)

# The messages that lead to a state, and the state in which each kind is due.
WAY: dict[State, list[Any]] = {State.START: [], State.OFFERED: [GOLDEN[pb.Hello][0]]}
WAY[State.TRAINING] = [*WAY[State.OFFERED], GOLDEN[pb.Welcome][0]]
WAY[State.ASKING] = [ASKING, GOLDEN[pb.Welcome][0]]
WAY[State.STEPPING] = [*WAY[State.TRAINING], GOLDEN[pb.Forward][0]]
WAY[State.ACKNOWLEDGING] = [*WAY[State.TRAINING], GOLDEN[pb.Calibrate][0]]
WAY[State.AVERAGING] = [*WAY[State.TRAINING], GOLDEN[pb.Average][0]]
WAY[State.ANSWERING] = [*WAY[State.TRAINING], GOLDEN[pb.Ask][0]]
WAY[State.CLOSED] = [GOLDEN[pb.Goodbye][0]]

CLIENT_SAYS = {pb.Hello, pb.Calibrate, pb.Forward, pb.Checkpoint, pb.Average, pb.Ask, pb.Goodbye}


def wrap(message: Any) -> bytes:
    """A frame made without the protocol's checks."""
    return pb.Envelope(**{type(message).__name__.lower(): message}).SerializeToString(deterministic=True)


def pair_at(state: State, limits: Limits | None = None) -> tuple[Protocol, Protocol]:
    """Client and server, both at `state`."""
    client, server = Protocol("client", limits), Protocol("server", limits)
    for message in WAY[state]:
        speaker, listener = (client, server) if type(message) in CLIENT_SAYS else (server, client)
        listener.receive(speaker.send(message))
    assert client.state == server.state == state
    return client, server


def listener_at(state: State, message: Any, limits: Limits | None = None) -> Protocol:
    """The side at `state` that would hear such a message."""
    client, server = pair_at(state, limits)
    return server if type(message) in CLIENT_SAYS else client


def speaker_at(state: State, message: Any) -> Protocol:
    """The side at `state` that would send such a message."""
    client, server = pair_at(state)
    return client if type(message) in CLIENT_SAYS else server


def due(kind: type[Any]) -> State:
    """A state in which a kind of message is due."""
    states = {
        pb.Hello: State.START,
        pb.Welcome: State.OFFERED,
        pb.Refuse: State.OFFERED,
        pb.Backward: State.STEPPING,
        pb.Ack: State.ACKNOWLEDGING,
        pb.Averaged: State.AVERAGING,
        pb.Tokens: State.ANSWERING,
    }
    return states.get(kind, State.TRAINING)
