"""The client's session: features in, codes up, gradients down, backward through the vision half."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs import Fp32
from bitseam.errors import CodecError, PeerGoneError, SessionLostError
from bitseam.models.client import ClientModel
from bitseam.quant import Quantized
from bitseam.runs.checkpoint import shared_state
from bitseam.sessions.connection import Connection
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.limits import require_rows
from bitseam.sessions.peer import Stopwatch
from bitseam.streams.coded import decode, encode
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import deflate, dictionary_of, keep_dictionary, kept_dictionary, text_message
from bitseam.transport import Channel
from bitseam.wire import VERSION
from bitseam.wire import messages_pb2 as pb

_WEIGHTS = Fp32()
T = TypeVar("T")
_NAMED = 64  # checkpoints that a Hello may name


@dataclass(frozen=True)
class StepLoss:
    """loss: cross-entropy summed over answer tokens, nats."""

    loss: float
    answer_tokens: int
    coded_bytes: int = 0  # payloads of entropy-coded features
    predicted_bytes: float = 0.0  # what their tables say that these take


class ClientSession:
    """One session with a server, over as many connections as it takes: when one breaks, it dials again and repeats what
    was not answered. Use as a context manager: leaving it says goodbye, with the reason if it failed.

    dial: opens a channel, or raises TransportError. autocast: "off" or "bf16", for the vision half. patience: seconds
    to go on trying.
    """

    def __init__(
        self,
        model: ClientModel,
        dial: Callable[[], Channel],
        vocabulary: int,
        autocast: str = "off",
        patience: float = 0.0,
    ) -> None:
        self.model = model
        self.streams = model.senders()
        self.ledger = Ledger(list(self.streams.values()))
        self.run, self.reached = "", 0  # the pair of halves, and the last whole step
        self.stopping = False  # the server is being stopped: a checkpoint is due
        self._connection = Connection(dial, self.ledger, patience)
        self._training = False
        self._micro = 0  # micro-batches answered of the step under way, `reached` + 1
        self._vocabulary = vocabulary
        self._autocast = autocast == "bf16"
        self._dictionary = b""  # of texts, that it has
        for stream in self.streams.values():
            stream.forget()
        self.watch = Stopwatch()

    def __enter__(self) -> ClientSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # The error's text may name pictures and questions, which are nobody's business there.
        self._connection.close("" if error is None else type(error).__name__)

    def open(
        self,
        terms: Mapping[str, str],
        training: bool,
        checkpoints: Callable[[], tuple[str, list[int]]] = lambda: ("", []),
    ) -> None:
        """The handshake; `run` and `reached` are then those that the server goes on from.

        checkpoints: the run that our folder holds, and its steps, whenever asked. Raises RefusedError with every
        difference named, and PeerGoneError where no server is found in time.
        """

        self._training = training

        def hello() -> pb.Hello:
            run, steps = checkpoints() if training else ("", [])
            purpose = pb.TRAIN if training else pb.ASK
            return pb.Hello(
                version=VERSION,
                purpose=purpose,
                terms=dict(terms),
                run=bytes.fromhex(run),
                steps=steps[-_NAMED:],
                image_tokens=self.model.vision.tokens,
            )

        welcome = self._connection.open(hello)
        self.run, self.reached = welcome.run.hex(), int(welcome.step)

    def socket_bytes(self) -> tuple[int, int] | None:
        """(sent, received) over all connections, as `Channel.socket_bytes`."""
        return self._connection.socket_bytes()

    def calibrate(self, features: Tensor, text: TextBatch) -> None:
        """Fit connector, quantizers, tables and the texts' dictionary to features (I, M, Dv) and texts, and tell the
        server, once."""
        model = self.model
        keep_dictionary(model, dictionary_of(text, self._vocabulary, model.hides_prompts))
        with torch.no_grad():
            model.vision.calibrate(features)
            for name, carried in model.features(features, text).items():
                self.streams[name].calibrate(carried)
                self.streams[name].use(0)
            model.eval()  # what is coded here is not counted again
            codes = model(features, text)
        self._dictionary = b""
        self._exchange(self._news(codes), pb.Ack)

    def step(self, step: int, micro: int, last: bool, features: Tensor, text: TextBatch) -> StepLoss:
        """One micro-batch: gradients are added to the vision half's parameters, as sums over answer tokens.

        features: (I, M, Dv). A stream's distortion counts in the loss by the weight of its settings. Raises LimitError
        for more than the server takes, before anything is sent.
        """
        self.model.train()
        drawn = np.random.default_rng((step, micro))  # the same rates and codes when a step is taken again
        for stream in self.streams.values():
            stream.use(int(drawn.integers(stream.rates)))
        for stream in self.streams.values():
            stream.begin(int(drawn.integers(2**63)), tuple(text.samples.tolist()))
        with self.watch("client forward"), self._precision():
            codes = self.model(features, text)
        self._require_room(codes, text)
        with self.watch("encode"):
            news = self._news(codes)
            forward = pb.Forward(step=step, micro=micro, last=last, text=self._text(text), streams=self._encode(codes))
            if news.ListFields():
                forward.news.CopyFrom(news)
            sizes = self._sizes(codes, forward)
        with self.watch("wait"):
            backward = self._exchange(forward, pb.Backward)
        outputs, gradients = [], []
        with self.watch("decode"):
            back = {coded.stream: coded for coded in backward.streams}
            for name, quantized in codes.items():
                stream = self.streams[name]
                gradient = stream.gradient(back.pop(stream.number, pb.Coded()), quantized)
                weight = stream.settings.distortion_weight
                # The loss is a sum over answer tokens here; the distortion, a mean, is weighed to match.
                outputs += [quantized.levels, quantized.distortion]
                gradients += [gradient, quantized.distortion.new_tensor(weight * backward.answer_tokens)]
            if back:
                raise CodecError(f"gradients of streams {sorted(back)}, which were not agreed")
        with self.watch("client backward"):
            kept = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
            if kept:
                torch.autograd.backward([o for o, _ in kept], [g for _, g in kept])
        self.reached, self._micro = (step, 0) if last else (self.reached, micro + 1)
        self.stopping = backward.stopping
        return StepLoss(backward.loss, backward.answer_tokens, *sizes)

    def checkpoint(self, step: int) -> None:
        """Have the server write its half at `step`; returns when it has."""
        acked = self._exchange(pb.Checkpoint(step=step), pb.Ack).step
        if acked != step:
            raise CodecError(f"the server wrote a checkpoint of step {acked} where {step} was asked")
        self.stopping = False

    @torch.no_grad()
    def average(self, step: int) -> int:
        """Put the mean of all clients' halves in the place of ours, at the end of a round; returns of how many."""
        tensors = shared_state(self.model)
        weights = torch.cat([tensor.detach().flatten().float().cpu() for tensor in tensors])
        answer = self._exchange(pb.Average(step=step, weights=encode(_WEIGHTS, weights)), pb.Averaged)
        mean = decode(_WEIGHTS, answer.weights, tuple(weights.shape), "averaged weights", torch.device("cpu"))
        for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))
        return int(answer.clients)

    def state(self) -> dict[str, Tensor]:
        """What the session remembers from step to step, for `restore`."""
        parts = {name: stream.state() for name, stream in self.streams.items()}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}

    def restore(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint of `step`, whose weights the model has again."""
        self.reached, self._micro, self._dictionary = step, 0, b""
        for name, stream in self.streams.items():
            own = f"{name}."
            stream.restore({key.removeprefix(own): value for key, value in state.items() if key.startswith(own)})

    def forget_samples(self) -> None:
        """Send whole again what was sent before: the server has forgotten it."""
        for stream in self.streams.values():
            stream.forget_samples()

    @torch.no_grad()
    def ask(self, features: Tensor, text: TextBatch, max_new_tokens: int) -> Iterator[list[int]]:
        """Features (B, M, Dv) and questions -> answers, one token id a sequence at a time.

        Raises LimitError for more than the server takes, before anything is sent.
        """
        was_training = self.model.training
        self.model.eval()
        self.model.use_asked()
        try:
            with self._precision():
                codes = self.model(features, text)
            self._require_room(codes, text, max_new_tokens)
            question = pb.Ask(text=self._text(text), streams=self._encode(codes), max_new_tokens=max_new_tokens)
            given = 0
            while True:
                try:
                    for number, ids in enumerate(self._connection.stream(question)):
                        if number == given:  # an answer that broke off is asked for again, and told from where it was
                            given += 1
                            yield ids
                    return
                except PeerGoneError as error:
                    self._come_back(error)
        finally:
            self.model.train(was_training)

    def _exchange(self, message: Any, answer: type[T]) -> T:
        """The answer to a message, over as many connections as it takes. Raises SessionLostError: see `_come_back`."""
        while True:
            try:
                return self._connection.exchange(message, answer)
            except PeerGoneError as error:
                self._come_back(error)

    def _come_back(self, error: PeerGoneError) -> None:
        """Find the server again. Raises SessionLostError where it has gone back to an earlier step than ours."""
        welcome = self._connection.again(error)
        run, step = welcome.run.hex(), int(welcome.step)
        # What is remembered of samples is a step ahead of the server's, where one is under way.
        remembers = self._training and any(stream.remembers for stream in self.streams.values())
        if not welcome.resumed and (remembers or (run, step, 0) != (self.run, self.reached, self._micro)):
            self.run, self.reached = run, step
            raise SessionLostError(f"the server has lost its memory of us; both go on from step {step}")

    def _news(self, codes: Mapping[str, Quantized]) -> pb.Calibrate:
        """What the server must know to read these codes and does not, and the texts' dictionary."""
        news = pb.Calibrate()
        if self._dictionary != (dictionary := kept_dictionary(self.model)):
            news.dictionary = deflate(dictionary.lstrip(b"\0"))
            self._dictionary = dictionary
        told = (self.streams[name].news(quantized) for name, quantized in codes.items())
        news.streams.extend(part for part in told if part is not None)
        return news

    def _sizes(self, codes: Mapping[str, Quantized], forward: pb.Forward) -> tuple[int, float]:
        """Bytes of entropy-coded payloads, and what the tables in use say of them."""
        size, predicted = 0, 0.0
        for (name, quantized), coded in zip(codes.items(), forward.streams, strict=True):
            if (expected := self.streams[name].predicted_bytes(quantized)) is not None:
                size, predicted = size + len(coded.payload), predicted + expected
        return size, predicted

    def _encode(self, codes: Mapping[str, Quantized]) -> list[pb.Coded]:
        return [self.streams[name].encode(quantized) for name, quantized in codes.items()]

    def _require_room(self, codes: Mapping[str, Quantized], text: TextBatch, new: int = 0) -> None:
        """What the message's own fields do not show; the rest is checked where it is sent."""
        require_rows(text, self._connection.limits, codes["image"].levels.shape[1], new)

    def _text(self, text: TextBatch) -> pb.Text:
        return text_message(text, self._vocabulary, kept_dictionary(self.model), self.model.hides_prompts)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(next(self.model.parameters()).device.type, torch.bfloat16, enabled=self._autocast)
