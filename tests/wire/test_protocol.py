"""The state machine: the whole table written out again by hand, golden frames, and the order of steps."""

from __future__ import annotations

from typing import Any

import pytest
from wire_examples import CLIENT_SAYS, GOLDEN, IMAGE, TEXT, due, pair_at, wrap

from bitseam.errors import LimitError, MalformedError, StateError
from bitseam.wire import Limits, Protocol, State
from bitseam.wire import messages_pb2 as pb

# state -> kind -> the state that follows, from the comment in messages.proto. Refuse is added below.
EXPECTED: dict[State, dict[type[Any], State]] = {
    State.START: {pb.Hello: State.OFFERED, pb.Goodbye: State.CLOSED},
    State.OFFERED: {pb.Welcome: State.TRAINING},
    State.TRAINING: {
        pb.Calibrate: State.ACKNOWLEDGING,
        pb.Forward: State.STEPPING,
        pb.Checkpoint: State.ACKNOWLEDGING,
        pb.Average: State.AVERAGING,
        pb.Ask: State.ANSWERING,
        pb.Goodbye: State.CLOSED,
    },
    State.ASKING: {pb.Ask: State.ANSWERING, pb.Goodbye: State.CLOSED},
    State.STEPPING: {pb.Backward: State.TRAINING},
    State.ACKNOWLEDGING: {pb.Ack: State.TRAINING},
    State.AVERAGING: {pb.Averaged: State.TRAINING},
    State.ANSWERING: {pb.Tokens: State.ANSWERING},
    State.CLOSED: {},
}
for _state, _moves in EXPECTED.items():
    if _state is not State.CLOSED:
        _moves[pb.Refuse] = State.CLOSED


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("kind", GOLDEN)
def test_every_message_in_every_state_moves_or_is_refused(state: State, kind: type[Any]) -> None:
    message = GOLDEN[kind][0]
    client, server = pair_at(state)
    speaker, listener = (client, server) if kind in CLIENT_SAYS else (server, client)
    side = speaker.role
    assert speaker.may_send(kind) == (kind in EXPECTED[state])
    assert not listener.may_send(kind)
    with pytest.raises(StateError, match=f"the {listener.role} sent {kind.__name__}"):
        listener.send(message)  # the wrong side, whatever the state
    if kind in EXPECTED[state]:
        assert listener.receive(speaker.send(message)) == message
        assert speaker.state == listener.state == EXPECTED[state][kind]
    else:
        for attempt in (lambda: speaker.send(message), lambda: listener.receive(wrap(message))):
            with pytest.raises(StateError, match=f"the {side} sent {kind.__name__}, which the state '{state.value}'"):
                attempt()
        assert speaker.state == listener.state == state


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_frames_both_ways(kind: type[Any]) -> None:
    message, golden = GOLDEN[kind]
    client, server = pair_at(due(kind))
    speaker, listener = (client, server) if kind in CLIENT_SAYS else (server, client)
    assert speaker.send(message).hex() == golden
    assert listener.receive(bytes.fromhex(golden)) == message


def test_a_session_that_asks_does_nothing_else_and_answers_end_with_the_last() -> None:
    client, server = pair_at(State.ASKING)
    server.receive(client.send(GOLDEN[pb.Ask][0]))
    for last, state in ((False, State.ANSWERING), (False, State.ANSWERING), (True, State.ASKING)):
        client.receive(server.send(pb.Tokens(ids=[1, 2], last=last)))
        assert client.state == server.state == state
    with pytest.raises(StateError, match="Forward"):
        client.send(GOLDEN[pb.Forward][0])


def test_an_answer_within_training_returns_to_training() -> None:
    client, server = pair_at(State.ANSWERING)
    client.receive(server.send(pb.Tokens(last=True)))
    assert client.state == server.state == State.TRAINING


def test_a_refused_hello_leaves_no_trace() -> None:
    client, server = pair_at(State.START)
    with pytest.raises(MalformedError, match="purpose"):
        server.receive(wrap(pb.Hello(version=1, purpose=7)))
    server.receive(client.send(GOLDEN[pb.Hello][0]))
    client.receive(server.send(GOLDEN[pb.Welcome][0]))
    assert client.state == server.state == State.TRAINING


def forward(step: int, micro: int) -> pb.Forward:
    return pb.Forward(step=step, micro=micro, text=TEXT, streams=[IMAGE])


@pytest.mark.parametrize(("step", "micro"), [(5, 3), (5, 2), (4, 9), (0, 0)])
def test_a_step_happens_once(step: int, micro: int) -> None:
    client, server = pair_at(State.TRAINING)
    server.receive(client.send(forward(5, 3)))
    client.receive(server.send(pb.Backward(step=5, micro=3, streams=[IMAGE])))
    for attempt in (lambda: client.send(forward(step, micro)), lambda: server.receive(wrap(forward(step, micro)))):
        with pytest.raises(StateError, match=rf"the client sent Forward of step {step}, .* was of step 5"):
            attempt()
    with pytest.raises(StateError, match="Checkpoint of step 4, micro-batch 0"):
        client.send(pb.Checkpoint(step=4))
    server.receive(client.send(forward(5, 4)))
    client.receive(server.send(pb.Backward(step=5, micro=4, streams=[IMAGE])))
    server.receive(client.send(pb.Checkpoint(step=5)))
    client.receive(server.send(pb.Ack(step=5)))
    server.receive(client.send(forward(6, 0)))


@pytest.mark.parametrize(("step", "micro"), [(1, 0), (2, 2), (0, 0)])
def test_a_gradient_belongs_to_its_step(step: int, micro: int) -> None:
    client, server = pair_at(State.STEPPING)
    message = pb.Backward(step=step, micro=micro, streams=[IMAGE])
    for attempt in (lambda: server.send(message), lambda: client.receive(wrap(message))):
        with pytest.raises(StateError, match="the server sent Backward of step"):
            attempt()


@pytest.mark.parametrize("kind", GOLDEN)
def test_frame_sizes_at_and_over_the_limit(kind: type[Any]) -> None:
    message, golden = GOLDEN[kind]
    size = len(bytes.fromhex(golden))
    heavy = kind in (pb.Calibrate, pb.Forward, pb.Backward, pb.Ask, pb.Average, pb.Averaged)
    for spare in (0, -1):
        limits = Limits(**{"frame_bytes" if heavy else "control_bytes": size + spare})
        client, server = pair_at(due(kind))
        client.limits = server.limits = limits  # only now: what leads here may be larger
        speaker, listener = (client, server) if kind in CLIENT_SAYS else (server, client)
        if spare == 0:
            listener.receive(speaker.send(message))
            continue
        with pytest.raises(LimitError, match=f"a {kind.__name__} of {size} bytes; the limit is {size - 1}"):
            speaker.send(message)
        with pytest.raises(LimitError, match=f"a {kind.__name__} of {size} bytes; the limit is {size - 1}"):
            listener.receive(wrap(message))


def test_a_message_too_large_is_refused_before_it_is_parsed() -> None:
    _, server = pair_at(State.TRAINING)
    body = b"\xff" * 2**20  # no message at all
    frame = b"\x5a\x80\x80\x40" + body
    with pytest.raises(LimitError, match="a Goodbye of"):
        server.receive(frame)


def test_steps_and_micro_batches_count_from_zero() -> None:
    client, server = pair_at(State.TRAINING)
    server.receive(client.send(forward(0, 0)))
    client.receive(server.send(pb.Backward(step=0, micro=0, streams=[IMAGE])))
    server.receive(client.send(forward(0, 1)))


# Where one may be sent a tensor; everywhere else the other side's frames are small.
HEAVY = {
    "server": {State.TRAINING, State.ASKING},  # Calibrate, Forward, Average or Ask
    "client": {State.STEPPING, State.AVERAGING},  # Backward or Averaged
}


@pytest.mark.parametrize("state", State)
def test_a_frame_may_be_long_only_where_a_tensor_is_due(state: State) -> None:
    for side in pair_at(state, Limits(frame_bytes=2000, control_bytes=1000)):
        assert side.most == (2000 if state in HEAVY[side.role] else 1000)


def test_one_message_has_one_frame_whatever_the_order_of_its_terms() -> None:
    names = [f"term.{number}" for number in range(40)]
    frames = {
        Protocol("client").send(pb.Hello(version=1, purpose=pb.TRAIN, terms=dict.fromkeys(order, "x")))
        for order in (names, names[::-1], names[1::2] + names[::2])
    }
    assert len(frames) == 1


@pytest.mark.parametrize("octets", range(1, 8))
def test_a_length_takes_five_bytes_at_the_most(octets: int) -> None:
    tag, size, *body = bytes.fromhex(GOLDEN[pb.Ack][1])
    length = bytes([size]) if octets == 1 else bytes([size | 0x80, *[0x80] * (octets - 2), 0])
    client, _ = pair_at(State.ACKNOWLEDGING)
    frame = bytes([tag, *length, *body])
    if octets <= 5:
        assert client.receive(frame) == GOLDEN[pb.Ack][0]
    else:
        with pytest.raises(MalformedError, match="not one message"):
            client.receive(frame)
