"""The server's session: codes in, loss, gradients out; then the optimiser steps."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError, CodecError, NonFiniteError, PeerGoneError, RefusedError, WireError
from bitseam.parties.ledger import Ledger
from bitseam.parties.models import ServerModel
from bitseam.parties.optimise import Stepper
from bitseam.parties.peer import Peer, Stopwatch, decode, encode
from bitseam.parties.seam import MODALITIES, Link, Seam, channels
from bitseam.parties.tables import keep_tables, with_kept_tables, with_tables
from bitseam.parties.text import TextBatch, read_text
from bitseam.quant import LevelProjection
from bitseam.transport import Channel
from bitseam.wire import VERSION, same_terms
from bitseam.wire import messages_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """What the server knows of one optimiser step. seconds: by part, summed over micro-batches."""

    step: int
    loss: float  # mean over answer tokens, nats
    answer_tokens: int
    norm: float
    rate: float
    seconds: dict[str, float]


@dataclass
class ServerParty:
    """The server half with its optimiser; sessions share it, one message at a time.

    terms: whether for training -> what must be alike, as it stands now. on_step is called after each optimiser step,
    on_checkpoint to write the half at a step.
    """

    model: ServerModel
    seam: Seam
    recipe: config.Recipe
    terms: Callable[[bool], Mapping[str, str]]
    vocabulary: int
    end: int
    step: int = 0
    run: str = field(default_factory=lambda: secrets.token_hex(16))
    on_step: Callable[[StepReport], None] = lambda report: None
    on_checkpoint: Callable[[int], None] = lambda step: None
    # One thread touches the model, whatever the number of sessions. Build the model in it too: OpenMP gives each thread
    # that computes a pool of its own, and where those outnumber the cores each step takes a third longer.
    compute: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "model"))

    def __post_init__(self) -> None:
        self.seam = with_kept_tables(self.seam, self.model)
        self.stepper = Stepper(self.model.parameters(), self.recipe.server.rate, self.recipe.train)
        self.device = next(self.model.parameters()).device


class ServerSession:
    """Serves one channel until the client says goodbye."""

    def __init__(self, party: ServerParty, channel: Channel) -> None:
        self.ledger = Ledger(party.seam.codec_ids(), party.seam.width)
        self.training = False
        self.watch = Stopwatch()
        self._party = party
        self._peer = Peer(channel, "server", self.ledger)
        self._who = channel.peer
        self._generator = torch.Generator()
        self._loss, self._answer_tokens = 0.0, 0

    def run(self) -> None:
        """Raises what ended the session before its time; the client has then been told as much as it may know."""
        try:
            if self._open():
                while not isinstance(message := self._peer.receive(), pb.Goodbye):
                    self._party.compute.submit(self._answer, message).result()
                if message.reason:
                    raise PeerGoneError(f"the client stopped: {message.reason}")
        except (WireError, CodecError) as error:
            ours = isinstance(error, NonFiniteError)  # what arrives cannot hold NaN: its codec has refused it
            self._refuse(pb.SERVER_ERROR if ours else pb.BAD_MESSAGE, str(error))
            raise
        except PeerGoneError:
            raise
        except BitseamError as error:
            self._refuse(pb.SERVER_ERROR, str(error))
            raise
        except Exception:
            self._refuse(pb.SERVER_ERROR, "internal error; see the server's log")
            raise
        finally:
            if self.training:
                self._party.stepper.clear()

    def _open(self) -> bool:
        hello = self._peer.receive()
        party = self._party
        self.training = hello.purpose == pb.TRAIN
        if hello.version != VERSION:
            ours, theirs = str(VERSION), str(hello.version)
            differences = [pb.Difference(field="protocol.version", client=theirs, server=ours)]
        else:
            differences = same_terms(hello.terms, party.terms(self.training))
        if differences:
            self.training = False
            reason = "client and server disagree; make their recipes and checkpoints alike"
            self._refuse(pb.TERMS_DIFFER, reason, differences)
            shown = "; ".join(f"{d.field}: client {d.client}, server {d.server}" for d in differences)
            raise RefusedError(f"refused {self._who}: {shown}")
        self._peer.send(pb.Welcome(session=bytes.fromhex(party.run), step=party.step))
        return True

    def _refuse(self, fault: pb.Fault, reason: str, differences: list[pb.Difference] | None = None) -> None:
        try:
            self._peer.send(pb.Refuse(fault=fault, reason=reason, differences=differences))
        except BitseamError as error:
            log.debug("could not tell the client: %s", error)

    def _answer(self, message: object) -> None:
        if isinstance(message, pb.Forward):
            self._forward(message)
        elif isinstance(message, pb.Ask):
            self._ask(message)
        elif isinstance(message, pb.Checkpoint):
            self._party.on_checkpoint(self._party.step)
            self._peer.send(pb.Ack(step=self._party.step))
        elif isinstance(message, pb.Calibrate):
            self._calibrate(message)
            self._peer.send(pb.Ack(step=self._party.step))

    def _calibrate(self, message: pb.Calibrate) -> None:
        party = self._party
        for name in MODALITIES:
            news, projection = getattr(message, name), getattr(party.model, f"{name}_projection")
            if news.tables:
                party.seam = with_tables(party.seam, name, news.tables, news.rate)
                keep_tables(party.model, name, news.tables, news.rate)
            if news.rotation and isinstance(projection, LevelProjection):
                projection.rotate(torch.from_numpy(np.frombuffer(news.rotation, np.int8).copy()))
            if news.mean and isinstance(projection, LevelProjection):
                mean, std = (torch.from_numpy(np.frombuffer(raw, "<f4").copy()) for raw in (news.mean, news.std))
                projection.calibrate(mean, std)

    def _read(self, message: pb.Forward | pb.Ask) -> tuple[TextBatch, Tensor, Tensor | None]:
        party, seam = self._party, self._party.seam
        text = read_text(message.text, party.vocabulary)
        tokens = message.image.shape[1] if len(message.image.shape) == 3 else 0
        agreed = party.recipe.seam
        due = (int(text.image[-1]) + 1, tokens, channels(agreed.image_up, agreed.width))
        codec = seam.image.at(message.image.rate, "image codes")
        image = decode(codec, message.image, due, "image codes", party.device)
        prompt = None
        if seam.text is not None:
            rows = (int((~text.answers).sum()), channels(agreed.text_up, agreed.width))
            codec = seam.text.at(message.text.codes.rate, "text codes")
            prompt = decode(codec, message.text.codes, rows, "text codes", party.device)
        elif message.text.HasField("codes"):
            raise CodecError("text codes: the prompt was agreed to cross as ids")
        return text, image, prompt

    def _forward(self, message: pb.Forward) -> None:
        party, watch = self._party, self.watch
        if message.step != party.step + 1:
            raise WireError(f"step {message.step} where {party.step + 1} is due")
        with watch("decode"):
            self._calibrate(message.statistics)
            text, image, prompt = self._read(message)
        if message.micro == 0:
            self._loss, self._answer_tokens = 0.0, 0
        party.model.train()
        with watch("server forward and backward"):
            image.requires_grad_()
            if prompt is not None:
                prompt.requires_grad_()
            bf16 = party.recipe.train.autocast == "bf16"
            with torch.autocast(party.device.type, torch.bfloat16, enabled=bf16):
                loss = party.model.loss(text, image, prompt)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteError(f"the loss of step {message.step} is {value}; try a lower server.rate")
            loss.backward()
        answer_tokens = int(text.answers.sum())
        with watch("encode"):
            self._generator.manual_seed((party.recipe.seed << 40) + (message.step << 16) + message.micro)
            backward = pb.Backward(
                step=message.step,
                micro=message.micro,
                loss=value,
                answer_tokens=answer_tokens,
                image=self._gradient(party.seam.image, image),
                text=self._gradient(party.seam.text, prompt),
            )
        self._peer.send(backward)
        self._loss += value
        self._answer_tokens += answer_tokens
        if message.last:
            self._update(message.step)

    def _gradient(self, link: Link | None, levels: Tensor | None) -> pb.Coded | None:
        if link is None or levels is None:
            return None
        gradient = levels.grad if levels.grad is not None else torch.zeros_like(levels)
        return encode(link.down, gradient, self._generator)

    def _update(self, step: int) -> None:
        party = self._party
        rate = party.stepper.rate
        with self.watch("server step"):
            norm = party.stepper.step(self._answer_tokens)
        party.step = step
        loss = self._loss / max(self._answer_tokens, 1)
        party.on_step(StepReport(step, loss, self._answer_tokens, norm, rate, self.watch.seconds))
        self.watch = Stopwatch()

    def _ask(self, message: pb.Ask) -> None:
        party = self._party
        text, image, prompt = self._read(message)
        if text.answers.any():
            raise CodecError("text: a question holds no answers")
        party.model.eval()
        party.model.generate(text, image, prompt, message.max_new_tokens, party.end, _TokenStreamer(self._peer))


class _TokenStreamer:
    """transformers calls `put` with each new token of the batch, and `end`."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def put(self, value: Tensor) -> None:
        if value.numel():
            self._peer.send(pb.Tokens(ids=value.flatten().tolist()))

    def end(self) -> None:
        self._peer.send(pb.Tokens(last=True))
