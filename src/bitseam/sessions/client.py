"""The client's session: features in, codes up, gradients down, backward through the vision half."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs import codec_from_config
from bitseam.errors import CodecError, PeerGoneError, SessionLostError
from bitseam.models.client import ClientModel
from bitseam.quant import Quantized, Quantizer
from bitseam.runs.checkpoint import shared_state
from bitseam.sessions.connection import Connection
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.peer import Stopwatch, decode, encode
from bitseam.streams.seam import MODALITIES, Seam
from bitseam.streams.tables import Fit, entropy_codec, keep_tables, use_rate, with_kept_tables, with_tables
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import deflate, dictionary_of, keep_dictionary, kept_dictionary, text_message
from bitseam.transport import Channel
from bitseam.wire import VERSION
from bitseam.wire import messages_pb2 as pb

_WEIGHTS = codec_from_config({"id": "fp32"})
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
        seam: Seam,
        dial: Callable[[], Channel],
        vocabulary: int,
        autocast: str = "off",
        patience: float = 0.0,
    ) -> None:
        self.model = model
        self.ledger = Ledger(seam.codec_ids(), seam.width)
        self.run, self.reached = "", 0  # the pair of halves, and the last whole step
        self.stopping = False  # the server is being stopped: a checkpoint is due
        self._connection = Connection(dial, self.ledger, patience)
        self._micro = 0  # micro-batches answered of the step under way, `reached` + 1
        self._seam = with_kept_tables(seam, model)
        coded = [name for name in MODALITIES if entropy_codec(seam, name) is not None]
        self._fits = {_key(name, rate): Fit() for name in coded for rate in range(len(seam.links()[name].rates))}
        self._vocabulary = vocabulary
        self._autocast = autocast == "bf16"
        self._told: dict[str, dict[str, Any]] = {}  # statistics that the server has
        self._dictionary = b""  # of texts, that it has
        self._rates: dict[str, int] = {}  # in use
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
        keep_dictionary(model, dictionary_of(text, self._vocabulary, hidden=model.text_quantizer is not None))
        with torch.no_grad():
            model.vision.calibrate(features)
            model.image_quantizer.calibrate(model.vision(features))
            if model.text_quantizer is not None:
                model.text_quantizer.calibrate(model.prompt_features(text))
            model.eval()  # what is coded here is not counted again
            self._use(dict.fromkeys(self._seam.links(), 0))
            codes = {"image": model.image(features), "text": model.text(text)}
        self._fits = {key: Fit(lost=math.inf) for key in self._fits}
        self._told, self._dictionary = {}, b""
        self._exchange(self._news(codes), pb.Ack)

    def step(self, step: int, micro: int, last: bool, features: Tensor, text: TextBatch, weight: float) -> StepLoss:
        """One micro-batch: gradients are added to the vision half's parameters, as sums over answer tokens.

        features: (B, M, Dv); weight: of the quantizers' distortion in the loss.
        """
        self.model.train()
        drawn = np.random.default_rng((step, micro))  # the same rates when a step is taken again
        self._use({name: int(drawn.integers(len(link.rates))) for name, link in self._seam.links().items()})
        with self.watch("client forward"), self._precision():
            image, prompt = self.model.image(features), self.model.text(text)
        with self.watch("encode"):
            news = self._news({"image": image, "text": prompt})
            forward = pb.Forward(
                step=step, micro=micro, last=last, text=self._text(text, prompt), image=self._image(image)
            )
            if news.ListFields():
                forward.statistics.CopyFrom(news)
            sizes = self._sizes({"image": (image, forward.image), "text": (prompt, forward.text.codes)})
        with self.watch("wait"):
            backward = self._exchange(forward, pb.Backward)
        outputs, gradients = [], []
        with self.watch("decode"):
            pairs = [("image", self._seam.image, image, backward.image)]
            if self._seam.text is not None and prompt is not None:
                pairs.append(("text", self._seam.text, prompt, backward.text))
            for name, link, quantized, coded in pairs:
                shape = tuple(quantized.levels.shape)
                gradient = decode(link.down, coded, shape, f"gradient of {name}", quantized.levels.device)
                # The loss is a sum over answer tokens here; the distortion, a mean, is weighed to match.
                outputs += [quantized.levels, quantized.distortion]
                gradients += [gradient, quantized.distortion.new_tensor(weight * backward.answer_tokens)]
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
        fits = {f"{name}.counts": torch.from_numpy(fit.counts) for name, fit in self._fits.items()}
        return fits | {f"{name}.lost": torch.tensor(fit.lost, dtype=torch.float64) for name, fit in self._fits.items()}

    def restore(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint of `step`, whose weights the model has again."""
        self.reached, self._micro, self._told, self._dictionary = step, 0, {}, b""
        self._seam = with_kept_tables(self._seam, self.model)
        for name in self._fits:
            self._fits[name] = Fit(state[f"{name}.counts"].numpy(), float(state[f"{name}.lost"]))

    @torch.no_grad()
    def ask(self, features: Tensor, text: TextBatch, max_new_tokens: int) -> Iterator[list[int]]:
        """Features (B, M, Dv) and questions -> answers, one token id a sequence at a time."""
        was_training = self.model.training
        self.model.eval()
        self._use({name: link.asked for name, link in self._seam.links().items()})
        try:
            with self._precision():
                image, prompt = self.model.image(features), self.model.text(text)
            question = pb.Ask(text=self._text(text, prompt), image=self._image(image), max_new_tokens=max_new_tokens)
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
        if not welcome.resumed and (run, step, 0) != (self.run, self.reached, self._micro):
            self.run, self.reached = run, step
            raise SessionLostError(f"the server has lost its memory of us; both go on from step {step}")

    def _news(self, codes: Mapping[str, Quantized | None]) -> pb.Calibrate:
        """What the server must know to read these codes and does not: statistics in use, tables that pay; and the
        texts' dictionary."""
        news = pb.Calibrate()
        if self._dictionary != (dictionary := kept_dictionary(self.model)):
            news.dictionary = deflate(dictionary.lstrip(b"\0"))
            self._dictionary = dictionary
        for name, quantized in codes.items():
            if quantized is None:
                continue
            for parts in _statistics(getattr(self.model, f"{name}_quantizer")):
                told = self._told.setdefault(name, {})
                if any(told.get(part) != raw for part, raw in parts.items()):
                    told |= parts
                    getattr(news, name).MergeFrom(pb.Statistics(**parts))
            rate = self._rates.get(name, 0)
            codec = entropy_codec(self._seam, name, rate)
            renewed = codec and self._fits[_key(name, rate)].renewed(codec, codec.counts(quantized.levels))
            if renewed is not None:
                tables = renewed.table_bytes()
                getattr(news, name).MergeFrom(pb.Statistics(tables=tables, rate=rate))
                keep_tables(self.model, name, tables, rate)
                self._seam = with_tables(self._seam, name, tables, rate)
        return news

    def _use(self, rates: dict[str, int]) -> None:
        """Have each modality quantized and coded at a rate."""
        self._rates = rates
        for name, rate in rates.items():
            use_rate(self.model, self._seam, name, rate)

    def _sizes(self, coded: Mapping[str, tuple[Quantized | None, pb.Coded]]) -> tuple[int, float]:
        """Bytes of entropy-coded payloads, and what the tables in use say of them."""
        size, predicted = 0, 0.0
        for name, (quantized, message) in coded.items():
            codec = entropy_codec(self._seam, name, self._rates.get(name, 0))
            if quantized is not None and codec is not None:
                size += len(message.payload)
                predicted += codec.bits(codec.counts(quantized.levels)) / 8
        return size, predicted

    def _image(self, image: Quantized) -> pb.Coded:
        return encode(self._seam.image.rates[self._rates["image"]], image.levels, rate=self._rates["image"])

    def _text(self, text: TextBatch, prompt: Quantized | None) -> pb.Text:
        codes = None
        if self._seam.text is not None and prompt is not None:
            rate = self._rates["text"]
            codes = encode(self._seam.text.rates[rate], prompt.levels, rate=rate)
        return text_message(text, self._vocabulary, kept_dictionary(self.model), codes)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(next(self.model.parameters()).device.type, torch.bfloat16, enabled=self._autocast)


def _key(name: str, rate: int) -> str:
    return f"{name}.{rate}"


def _statistics(quantizer: Quantizer) -> list[dict[str, Any]]:
    """What the server must know of a quantizer, as it travels; what belongs together."""
    parts, statistics, rotation = [], quantizer.statistics(), quantizer.rotation()
    if statistics is not None:
        mean, std = (np.ascontiguousarray(t.cpu().numpy(), "<f4").tobytes() for t in statistics)
        parts.append({"mean": mean, "std": std})
    if rotation is not None:
        parts.append({"rotation": rotation.cpu().numpy().tobytes()})
    return parts
