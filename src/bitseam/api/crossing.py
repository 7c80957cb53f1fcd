"""A stream's two ends as makers and readers of messages, which know what the other side has been told.

Shapes: levels (..., C), and their gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from bitseam import config
from bitseam.api.message import FEATURES, GRADIENT, features_in, fingerprint, gradient_in, seal, unseal
from bitseam.errors import NonFiniteError, StateError
from bitseam.quant import Quantized
from bitseam.streams import End, Receiver, Sender, agreed
from bitseam.streams.coded import encode
from bitseam.wire import messages_pb2 as pb


def terms_of(end: End) -> bytes:
    """The fingerprint of all that both ends must have alike."""
    named = {"width": str(end.width), "quantizer": end.settings.quantizer}
    return fingerprint(config.canonical(agreed({end.name: end}) | named).encode())


class Outgoing:
    """The sending end's messages."""

    def __init__(self, sender: Sender, what: str) -> None:
        """what: the stream, in errors; as below."""
        self._sender, self._what, self._terms = sender, what, terms_of(sender)
        self._count = 0
        self._told: dict[str, bytes] = {}

    def forget(self) -> None:
        """Tell all anew."""
        self._sender.forget()
        self._told = {}

    def message(self, quantized: Quantized, told: dict[str, bytes] | None = None) -> bytes:
        """Codes at the rate in use, with what is needed to read them and has not been told.

        told: what the reader has, as of `known`; the other side has what earlier messages told.
        """
        sender, rate, told = self._sender, self._sender.rate, self._told if told is None else told
        coded, news = sender.encode(quantized), sender.untold(told)
        for name, raw in _tables(sender, rate).items():
            if told.get(name) != raw:
                told[name] = raw
                news.tables.add(rate=rate, frequencies=raw)
        self._count += 1
        forward = pb.Forward(step=self._count, streams=[coded])
        if news.ListFields():
            forward.news.streams.add().CopyFrom(news)
        body = forward.SerializeToString(deterministic=True)
        return seal(FEATURES, self._terms, _reading(sender.channels, known(sender, rate)), body)

    def about(self, back: bytes) -> tuple[bytes, pb.Coded]:
        """A message of a gradient -> the tag of the message that it belongs to, and itself. Raises as `unseal`."""
        message = unseal(back, GRADIENT, self._terms, self._what)
        return message.about, gradient_in(message, self._what)


class Incoming:
    """The receiving end's messages."""

    def __init__(self, receiver: Receiver, what: str) -> None:
        """As `Outgoing`."""
        self._receiver, self._what, self._terms = receiver, what, terms_of(receiver)
        self.forget()

    def forget(self) -> None:
        """Remember no samples, of a codec that sends what has changed of each."""
        self._samples = self._receiver.changes()

    def read(self, raw: bytes, device: torch.device) -> tuple[bytes, Tensor]:
        """A message of features -> its tag, and levels (..., C) on the device. Raises as `Stream.decode` does."""
        receiver = self._receiver
        message = unseal(raw, FEATURES, self._terms, self._what)
        forward = features_in(message, receiver.channels, self._what)
        coded = forward.streams[0]
        told = forward.news.streams[0] if forward.news.streams else pb.Statistics()
        news = {field.name: value for field, value in told.ListFields() if isinstance(value, bytes)}
        news |= {f"tables {tables.rate}": tables.frequencies for tables in told.tables if tables.rate == coded.rate}
        if _reading(receiver.channels, known(receiver, coded.rate) | news) != message.about:
            raise StateError(
                f"{self._what}: this message was coded with statistics or tables that have not been told here: decode "
                "messages in the order of encoding; where one is lost, or this side has begun anew, call retell() on "
                "the other side and encode again"
            )
        receiver.learn(told)
        samples = self._samples if coded.samples else None
        return message.tag, receiver.decode(coded, tuple(coded.shape[:-1]), device, samples)

    def gradient(self, tag: bytes, gradient: Tensor) -> bytes:
        """The gradient by the levels (..., C) of the message of that tag, as a message. Raises NonFiniteError."""
        try:
            coded = encode(self._receiver.gradient_codec, gradient)
        except NonFiniteError as error:
            raise NonFiniteError(f"gradient of {self._what}: {error}") from error
        return seal(GRADIENT, self._terms, tag, coded.SerializeToString(deterministic=True))


def known(end: Sender | Receiver, rate: int) -> dict[str, bytes]:
    """What codes of a rate are read with at this end: fields of `Statistics`, and the tables of the rate."""
    found = _tables(end, rate)
    for parts in end.known():
        found |= parts
    return found


def _tables(end: End, rate: int) -> dict[str, bytes]:
    codec = end.entropy_codec(rate)
    return {} if codec is None else {f"tables {rate}": codec.table_bytes()}


def _reading(channels: int, known: Mapping[str, bytes]) -> bytes:
    """The fingerprint of what codes are read with; where a quantizer has no statistics, a fresh reader's are none."""
    usual = {"mean": bytes(4 * channels), "std": np.ones(channels, "<f4").tobytes()}
    return fingerprint(*(part for name, raw in sorted((usual | dict(known)).items()) for part in (name.encode(), raw)))
