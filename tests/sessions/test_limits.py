"""What a recipe lets an honest client send passes its own limits; what is over them does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe

from bitseam.errors import LimitError, printable
from bitseam.sessions.averaging import Averaging
from bitseam.sessions.limits import QUESTIONS, held_bytes, require_rows, session_limits
from bitseam.sessions.seat import Seat
from bitseam.streams import Stream, build_streams
from bitseam.streams.coded import encode
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import text_message
from bitseam.transport import HELD_BYTES
from bitseam.wire import Limits, Protocol
from bitseam.wire import messages_pb2 as pb

VOCABULARY = 70_000
SEAMS: list[dict[str, Any]] = [
    {},
    {"streams__image": {"quantizer": "none", "codec": "fp32"}},
    {"streams__image__codec__id": "entropy-uniform", "streams__image__gradient__id": "entropy-stochastic"},
    {"streams__text": {"quantizer": "none", "codec": "fp16"}},
    {"train__batch": 100, "text__max_tokens": 8, "seam__max_tokens": 3},
]


def largest(batch: int, words: int, answers: bool) -> TextBatch:
    """Ids and marks that nothing can be saved on."""
    count = batch * words
    return TextBatch(
        ids=torch.randint(VOCABULARY, (count,)),
        lengths=torch.full((batch,), words),
        image_at=torch.randint(words, (batch,)),
        image=torch.arange(batch),
        answers=(torch.arange(count) % 2 == 1) & answers,
    )


@pytest.mark.parametrize("changes", SEAMS)
def test_the_largest_message_of_a_recipe_passes_and_a_larger_one_does_not(tiny: Tiny, changes: dict[str, Any]) -> None:
    recipe = make_recipe(tiny, **({"seam__max_tokens": 10} | changes))
    limits, most = session_limits(recipe, VOCABULARY), recipe.seam.max_tokens
    streams = build_streams(Stream, recipe.streams, recipe.seam.width)
    batch, words = max(recipe.train.batch, QUESTIONS), recipe.text.max_tokens
    assert limits.batch == batch
    assert limits.frame_bytes < 20 * 2**20 < Limits().frame_bytes

    def forward(images: int, tokens: int) -> pb.Forward:
        text, hidden = largest(images, words, answers="text" not in streams), "text" in streams
        tokens_of = {"image": (images, tokens), "text": (images * words,)}
        coded = []
        for name, stream in streams.items():
            coded.append(encode(stream.codec(0), torch.randn(*tokens_of[name], stream.channels)))
            coded[-1].stream = stream.number
        return pb.Forward(step=1, text=text_message(text, VOCABULARY, hidden=hidden), streams=coded)

    def send(message: pb.Forward) -> None:
        client, server = Protocol("client", limits), Protocol("server", limits)
        for speaker, listener, said in (
            (client, server, pb.Hello(version=1, purpose=pb.TRAIN)),
            (server, client, pb.Welcome(session=bytes(16), run=bytes(16), limits=limits.told())),
            (client, server, message),
        ):
            frame = speaker.send(said)
            assert len(frame) <= listener.most
            listener.receive(frame)

    send(forward(batch, most))
    if "text" not in streams:
        with pytest.raises(LimitError, match="stream 0: elements"):
            send(forward(1, most * batch + 1))
    text = largest(1, words, True)
    require_rows(text, limits, image_tokens=most)
    with pytest.raises(LimitError, match="image: "):
        require_rows(text, limits, image_tokens=most + 1)
    with pytest.raises(LimitError, match=r"text.sequences"):
        send(forward(batch + 1, 1))
    held = held_bytes(limits, 3)
    assert held == 3 * (4 * limits.frame_bytes + HELD_BYTES)


def test_what_may_come_next_is_small_until_something_large_is_due() -> None:
    limits = Limits()
    client, server = Protocol("client", limits), Protocol("server", limits)
    sizes = [server.most]
    image = pb.Coded(shape=[1, 1, 1])
    for speaker, listener, message in (
        (client, server, pb.Hello(version=1, purpose=pb.TRAIN)),
        (server, client, pb.Welcome(session=bytes(16), run=bytes(16), limits=limits.told())),
        (client, server, pb.Forward(step=1, text=pb.Text(sequences=1), streams=[image])),
        (server, client, pb.Backward(step=1, streams=[image])),
    ):
        listener.receive(speaker.send(message))
        sizes.append(server.most)
    assert sizes == [limits.control_bytes] * 2 + [limits.frame_bytes, limits.control_bytes, limits.frame_bytes]


def test_a_row_longer_than_the_recipes_is_refused(tiny: Tiny) -> None:
    limits = session_limits(make_recipe(tiny), VOCABULARY)
    require_rows(largest(2, 32, True), limits, 4)
    with pytest.raises(LimitError, match=r"a sequence of 33 tokens; text.max_tokens is 32"):
        require_rows(largest(2, 33, True), limits, 4)


def test_weights_of_one_client_do_not_make_the_mean_infinite() -> None:
    averaging, seats = Averaging(last=1), [Seat("a"), Seat("b")]
    averaging._brought = {seat.name: (seat, 1, torch.full((2,), 3e38)) for seat in seats}
    with averaging._changed:
        averaging._close()
    for seat in seats:
        assert seat.average is not None
        assert torch.isfinite(seat.average[0]).all()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain é", "plain é"),
        ("a\nb\x1b[2J\u202e", "a\\nb\\x1b[2J\\u202e"),
        ("x" * 301, "x" * 300 + "... (301 characters)"),
    ],
)
def test_what_a_peer_wrote_is_one_line_in_a_log(said: str, shown: str) -> None:
    assert printable(said) == shown
