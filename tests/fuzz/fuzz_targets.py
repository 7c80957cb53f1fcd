"""What is fuzzed: everything that turns bytes of a peer into something else, each with the errors that it documents.

A target has variants (a state of the protocol, a codec and a shape, a vocabulary); an input is a variant and bytes.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzz_mutation import Mutation, move_weight, mutate_bytes, mutate_message, mutate_symbols

from bitseam.codecs import Codec, EntropyUniform, codec_from_config
from bitseam.codecs.delta import Changes
from bitseam.errors import BitseamError, CodecError, LimitError, MalformedError, PeerGoneError, WireError
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import read_text, text_message
from bitseam.transport.flow import PIECE, Assembly, Pieces
from bitseam.wire import Limits, Protocol, State
from bitseam.wire import messages_pb2 as pb

sys.path.append(str(Path(__file__).parent.parent / "wire"))
from wire_examples import GOLDEN, pair_at, wrap

SHAPES = [(1, 1, 1), (2, 3, 8), (1, 5, 33), (4, 16), (7,), (3, 20, 96)]
CODECS: dict[str, list[dict[str, Any]]] = {
    "floats": [{"id": "fp32"}, {"id": "fp16"}, {"id": "bf16"}],
    "fp8": [{"id": "fp8", "format": "e4m3"}, {"id": "fp8", "format": "e5m2", "block": 5}],
    "uniform": [{"id": "uniform", "levels": levels, "clip": 1.5} for levels in (2, 3, 4, 8, 255, 65536)],
    "stochastic": [{"id": "stochastic", "levels": 4}, {"id": "stochastic", "levels": 3, "block": 7}],
    "one-bit": [{"id": "one-bit"}, {"id": "one-bit", "block": 9, "scale": "least-error"}],
    "blockwise-int": [{"id": "blockwise-int", "bits": 8}, {"id": "blockwise-int", "bits": 3, "block": 4}],
    "nf": [{"id": "nf", "bits": 4, "block": 16}, {"id": "nf", "bits": 2, "block": "token"}],
    "entropy-uniform": [
        {"id": "entropy-uniform", "levels": 4, "clip": 1.5, "groups": 2},
        {"id": "entropy-uniform", "levels": 200, "clip": 1.5, "groups": 1},
        {"id": "entropy-uniform", "levels": 5, "clip": 1.5, "groups": 2, "contexts": 3},
    ],
    "entropy-stochastic": [{"id": "entropy-stochastic", "step": 2.0}, {"id": "entropy-stochastic", "step": 0.1}],
    "top-k": [{"id": "top-k", "share": 0.1}, {"id": "top-k", "share": 0.3, "bits": 2}, {"id": "top-k", "share": 0.9}],
    "splitfc": [{"id": "splitfc", "bits": 2}, {"id": "splitfc", "bits": 0.3, "endpoints": 3}],
}
VOCABULARIES = (17, 300, 70_000)
LIMITS = Limits(frame_bytes=2**16, control_bytes=2**12, batch=64, tokens=4096, elements=2**16)


@dataclass(frozen=True)
class Target:
    """run: a variant and bytes; anything but the documented errors that comes out of it is a find."""

    name: str
    variants: int
    seeds: list[tuple[int, bytes]]
    run: Callable[[int, bytes], None]
    documented: tuple[type[BitseamError], ...]
    mutations: tuple[Mutation, ...] = (mutate_bytes,)
    weight: int = 1  # its share of the inputs
    breeds: bool = True  # inputs that come farther become ancestors of others; of text they are mostly broken for good


def targets() -> list[Target]:
    """All of them, with their seeds; the same ones each time."""
    torch.manual_seed(0)
    return [
        _frames(),
        *(_codec(name, [codec_from_config(config) for config in configs]) for name, configs in CODECS.items()),
        _shapes(),
        _delta(),
        _tables(),
        _text(),
        _pieces(),
        _piece(),
    ]


def _frames() -> Target:
    """Frames in every state, to either side: a message that is sound, or an error and the state stays."""
    places = list(product(State, (0, 1)))
    listeners = [pair_at(state, LIMITS)[side] for state, side in places]
    frames = [bytes.fromhex(golden) for _, golden in GOLDEN.values()]
    frames += [wrap(message) for message in _messages()]

    def run(variant: int, frame: bytes) -> None:
        listener: Protocol = copy.copy(listeners[variant])
        before = listener.state
        try:
            message = listener.receive(frame)
        except WireError:
            assert listener.state is before
            raise
        assert listener.state is not before or before is State.ANSWERING
        assert 0 < listener.most <= LIMITS.frame_bytes
        wrap(message)

    # Each frame where it is due, so that it is mutated from there.
    seeds = []
    for frame in frames:
        for variant in range(len(places)):
            try:
                run(variant, frame)
            except WireError:
                continue
            seeds.append((variant, frame))
    whole = partial(mutate_message, kind=pb.Envelope)
    return Target("frames", len(places), seeds, run, (WireError,), (mutate_bytes, whole, whole), 6)


def _messages() -> Iterator[Any]:
    text = pb.Text(sequences=3, tokens=40, symbols=bytes(30))
    streams = [
        pb.Coded(shape=[2, 16, 8], payload=bytes(64)),
        pb.Coded(stream=1, shape=[30, 8], payload=bytes(60), rate=1),
    ]
    told = [
        pb.Statistics(mean=bytes(32), std=bytes(32), tables=[pb.Tables(frequencies=bytes(64))]),
        pb.Statistics(stream=1, tables=[pb.Tables(frequencies=bytes(64)), pb.Tables(rate=1, frequencies=bytes(64))]),
    ]
    news = pb.Calibrate(streams=told, dictionary=bytes(30))
    yield pb.Forward(step=1, micro=3, text=text, streams=streams, news=news)
    yield pb.Backward(step=1, micro=2, loss=3.5, answer_tokens=9, streams=streams, stopping=True)
    yield pb.Ask(text=text, streams=streams, max_new_tokens=100)
    yield pb.Hello(
        version=1, purpose=pb.ASK, terms={f"term {i}": "x" * i for i in range(20)}, run=bytes(16), steps=[1, 2, 300]
    )
    differences = [pb.Difference(field=str(i), client="a" * i, server="b") for i in range(9)]
    yield pb.Refuse(fault=pb.TERMS_DIFFER, reason="many", differences=differences)


def _decoded(codec: Codec, payload: bytes, shape: tuple[int, ...]) -> None:
    values = codec.decode(payload, shape)
    assert values.dtype is torch.float32
    assert tuple(values.shape) == shape
    assert torch.isfinite(values).all()


def _codec(name: str, codecs: list[Codec]) -> Target:
    """Payloads of every codec: finite numbers of the shape that was agreed, or a CodecError."""
    variants = list(product(codecs, SHAPES))

    def run(variant: int, payload: bytes) -> None:
        _decoded(variants[variant][0], payload, variants[variant][1])

    seeds = []
    for variant, (codec, shape) in enumerate(variants):
        tensors = [torch.randn(shape), torch.zeros(shape), torch.randn(shape) ** 5]
        seeds += [(variant, codec.encode(x)) for x in tensors]
    mutations = (mutate_bytes, move_weight) if name == "entropy-stochastic" else (mutate_bytes,)
    return Target(name, len(variants), seeds, run, (CodecError,), mutations)


def _shapes() -> Target:
    """Shapes that lie: of a message whose fields are within limits, decoded as they say."""
    codecs = [codec_from_config(configs[-1]) for configs in CODECS.values()]

    def run(variant: int, raw: bytes) -> None:
        listener = pair_at(State.STEPPING, LIMITS)[0]
        message = listener.receive(raw)
        if isinstance(message, pb.Backward):
            for coded in message.streams:
                _decoded(codecs[variant], coded.payload, tuple(coded.shape))

    seeds = []
    for variant, codec in enumerate(codecs):
        for shape in SHAPES:
            image = pb.Coded(shape=shape, payload=codec.encode(torch.randn(shape)))
            seeds.append((variant, wrap(pb.Backward(step=1, micro=2, streams=[image]))))
    mutations = (mutate_bytes, partial(mutate_message, kind=pb.Envelope))
    return Target("shapes", len(codecs), seeds, run, (WireError, CodecError), mutations)


def _delta() -> Target:
    """The second visit of a sample that comes again."""
    first, inner = codec_from_config({"id": "fp16"}), codec_from_config({"id": "stochastic", "levels": 4})
    x = torch.randn(4, 8)
    sender, receiver = Changes(first, inner, 2**20), Changes(first, inner, 2**20)
    visits = [sender.encode(1, x), sender.encode(1, x + 0.1)]

    def run(variant: int, message: bytes) -> None:
        end = copy.copy(receiver)
        end._known = {}
        if variant:
            end.decode(1, visits[0], x.shape)
        assert torch.isfinite(end.decode(1, message, x.shape)).all()

    return Target("delta", 2, list(enumerate(visits)), run, (CodecError,))


def _tables() -> Target:
    """Tables of frequencies, and what is then decoded by them."""
    codec, x = EntropyUniform(4, 1.5, 2), torch.randn(2, 3, 8)
    fitted = codec.learned(codec.counts(x))
    payload = fitted.encode(x)

    def run(variant: int, raw: bytes) -> None:
        given = codec.with_tables(raw)
        _decoded(given, payload, tuple(x.shape)) if variant else None

    seeds = [(variant, c.table_bytes()) for variant in (0, 1) for c in (codec, fitted)]
    return Target("tables", 2, seeds, run, (CodecError,), (mutate_bytes, move_weight))


KNOWN = bytes(range(256)) * 128  # a dictionary of texts


def _text() -> Target:
    """Batches of text: all of its parts agree with each other, and it is written as it was read."""
    seeds = []
    for variant, (vocabulary, hidden) in enumerate(product(VOCABULARIES, (False, True))):
        for lengths in ([3], [5, 0, 9], [40] * 12):
            seeds.append((variant, _batch(lengths, vocabulary, hidden)))

    def run(variant: int, raw: bytes) -> None:
        vocabulary = VOCABULARIES[variant // 2]
        try:
            message = pb.Text.FromString(raw)
        except Exception:  # not this target's
            return
        if message.sequences > LIMITS.batch or message.tokens > LIMITS.tokens:
            return  # refused by the message's checks
        text = read_text(message, vocabulary, KNOWN, hidden=variant % 2 == 1)
        assert len(text.ids) == len(text.answers) == int(text.lengths.sum()) == message.tokens
        assert len(text.lengths) == len(text.image) == len(text.image_at) == message.sequences
        assert (text.image_at <= text.lengths).all()
        assert (text.image.diff() >= 0).all()
        assert not message.tokens or 0 <= text.ids.min() <= text.ids.max() < vocabulary

    symbols = partial(mutate_symbols, vocabularies=VOCABULARIES)
    parts = partial(mutate_message, kind=pb.Text)
    return Target("text", 2 * len(VOCABULARIES), seeds, run, (CodecError,), (mutate_bytes, symbols, parts), 4)


def _batch(lengths: list[int], vocabulary: int, hidden: bool) -> bytes:
    rng = Random(len(lengths))
    count = sum(lengths)
    text = TextBatch(
        ids=torch.tensor([rng.randrange(min(vocabulary, 40)) for _ in range(count)], dtype=torch.int64),
        lengths=torch.tensor(lengths),
        image_at=torch.tensor([rng.randint(0, length) for length in lengths]),
        image=torch.arange(len(lengths)) // 2,
        answers=torch.arange(count) % 7 > 4,
    )
    return text_message(text, vocabulary, KNOWN, hidden).SerializeToString(deterministic=True)


def _pieces() -> Target:
    """Pieces of frames: never more than the most is kept."""

    def run(variant: int, raw: bytes) -> None:
        assembly, most = Assembly(plaintext=False), (0, 100, 3 * PIECE)[variant]
        for size in raw:
            frame = assembly.add(_PIECES[size % len(_PIECES)], most)
            assert frame is None or len(frame) <= most

    return Target("pieces", 3, [(i, bytes(range(40))) for i in range(3)], run, (LimitError, MalformedError))


def _piece() -> Target:
    """One message of gRPC: over TLS, and in plaintext."""

    def run(variant: int, raw: bytes) -> None:
        frame = Assembly(plaintext=bool(variant)).add(raw, 30)
        assert frame is None or len(frame) <= 30

    seeds = [(number, next(Pieces(bool(number)).cut(bytes(range(20))))) for number in range(2)]
    return Target("piece", 2, seeds, run, (LimitError, MalformedError, PeerGoneError))


_PIECES = [
    pb.Piece(data=bytes(size), last=last).SerializeToString()
    for size in (0, 1, 60, PIECE - 1, PIECE, PIECE + 1)
    for last in (True, False)
]
