"""The server's session: codes in, loss, gradients out; then the optimiser steps."""

from __future__ import annotations

import logging
import math
import secrets
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from bitseam.errors import (
    BitseamError,
    CodecError,
    NonFiniteError,
    PeerGoneError,
    RefusedError,
    StateError,
    WireError,
)
from bitseam.parties.ledger import Ledger
from bitseam.parties.party import Seat, ServerParty, StepReport
from bitseam.parties.peer import Peer, Stopwatch, decode, encode
from bitseam.parties.seam import MODALITIES, Link, channels
from bitseam.parties.tables import keep_tables, with_tables
from bitseam.parties.text import TextBatch, read_text
from bitseam.quant import LevelProjection
from bitseam.transport import Channel
from bitseam.wire import VERSION, same_terms
from bitseam.wire import messages_pb2 as pb

log = logging.getLogger(__name__)


class ServerSession:
    """Serves one channel until the client says goodbye."""

    def __init__(self, party: ServerParty, channel: Channel) -> None:
        self.ledger = Ledger(party.seam.codec_ids(), party.seam.width)
        self.training = False
        self.watch = Stopwatch()
        self._party = party
        self._peer = Peer(channel, "server", self.ledger)
        self._who, self._name = channel.peer, channel.name
        self._generator = torch.Generator()
        self._seat: Seat | None = None

    def run(self) -> None:
        """Raises what ended the session before its time; the client has then been told as much as it may know."""
        try:
            if self._open():
                while not isinstance(message := self._peer.receive(), pb.Goodbye):
                    if self._stops_at(message):
                        self._refuse(pb.STOPPING, "the server is being stopped")
                        return
                    self._party.compute.submit(self._answer, message).result()
                self._party.leave(self._seat)
                if message.reason:
                    raise PeerGoneError(f"the client stopped: {message.reason}")
        except PeerGoneError:
            raise  # it may come back, and finds its seat
        except (WireError, CodecError) as error:
            self._party.leave(self._seat)
            ours = isinstance(error, NonFiniteError)  # what arrives cannot hold NaN: its codec has refused it
            self._refuse(pb.SERVER_ERROR if ours else pb.BAD_MESSAGE, str(error))
            raise
        except BitseamError as error:
            self._party.leave(self._seat)
            self._refuse(pb.SERVER_ERROR, str(error))
            raise
        except Exception:
            self._party.leave(self._seat)
            self._refuse(pb.SERVER_ERROR, "internal error; see the server's log")
            raise

    def _open(self) -> bool:
        hello, party = self._peer.receive(), self._party
        self.training = hello.purpose == pb.TRAIN
        if party.stopping.is_set():
            self._refuse(pb.STOPPING, "the server is being stopped")
            return False
        if hello.version != VERSION:
            ours, theirs = str(VERSION), str(hello.version)
            differences = [pb.Difference(field="protocol.version", client=theirs, server=ours)]
        else:
            differences = same_terms(hello.terms, party.terms(self.training))
        if differences:
            reason = "client and server disagree; make their recipes and checkpoints alike"
            self._refuse(pb.TERMS_DIFFER, reason, differences)
            shown = "; ".join(f"{d.field}: client {d.client}, server {d.server}" for d in differences)
            raise RefusedError(f"refused {self._who}: {shown}")
        if self.training:
            try:
                self._seat, welcome = party.compute.submit(party.admit, hello, self._name).result()
            except RefusedError as error:
                self._refuse(pb.TERMS_DIFFER, str(error))
                raise
        else:
            welcome = pb.Welcome(session=secrets.token_bytes(16), run=bytes.fromhex(party.run), step=party.step)
        self._peer.send(welcome)
        return True

    def _stops_at(self, message: object) -> bool:
        """Whether to stop here: a client that trains was told so in its last step, and both have written that step."""
        begins = isinstance(message, pb.Forward) and message.micro == 0 and self._seat is not None and self._seat.warned
        return self._party.stopping.is_set() and (begins or isinstance(message, pb.Ask))

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
            self._checkpoint(message)
            self._peer.send(pb.Ack(step=self._party.step))
        elif isinstance(message, pb.Calibrate):
            self._calibrate(message)
            self._peer.send(pb.Ack(step=self._party.step))

    def _checkpoint(self, message: pb.Checkpoint) -> None:
        self._require_seat()
        if message.step != self._party.step:
            raise WireError(f"checkpoint of step {message.step} where the server stands at {self._party.step}")
        self._party.save()

    def _require_seat(self) -> Seat:
        """Raises StateError where the client has come back through another connection since."""
        if self._seat is None or self._seat is not self._party.seat:
            raise StateError("this session is over: its client has begun another")
        return self._seat

    def _calibrate(self, message: pb.Calibrate) -> None:
        party = self._party
        self._require_seat()
        party.touch()
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
        text = read_text(message.text, party.prompter.vocabulary)
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
        party, watch, seat = self._party, self.watch, self._require_seat()
        request = blake2b(message.SerializeToString(deterministic=True)).digest()
        if request == seat.request:
            self._peer.send(seat.answer)
            return
        if (message.step, message.micro) != (party.step + 1, seat.micro):
            here, due = f"step {message.step}", f"{party.step + 1}"
            raise WireError(f"{here} where {due} is due, micro-batch {message.micro} where {seat.micro} is due")
        party.touch()
        with watch("decode"):
            self._calibrate(message.statistics)
            text, image, prompt = self._read(message)
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
            seat.answer = pb.Backward(
                step=message.step,
                micro=message.micro,
                loss=value,
                answer_tokens=answer_tokens,
                image=self._gradient(party.seam.image, image),
                text=self._gradient(party.seam.text, prompt),
                stopping=message.last and party.stopping.is_set(),
            )
        seat.request, seat.micro = request, message.micro + 1
        seat.loss, seat.answer_tokens = seat.loss + value, seat.answer_tokens + answer_tokens
        try:
            self._peer.send(seat.answer)  # before the update, which the client need not wait for
        finally:  # a client that is gone may come back for the answer, and the step has happened
            if message.last:
                self._update(seat)

    def _gradient(self, link: Link | None, levels: Tensor | None) -> pb.Coded | None:
        if link is None or levels is None:
            return None
        gradient = levels.grad if levels.grad is not None else torch.zeros_like(levels)
        return encode(link.down, gradient, self._generator)

    def _update(self, seat: Seat) -> None:
        party = self._party
        with self.watch("server step"):
            norm, rate = party.update(seat)
        loss = seat.loss / max(seat.answer_tokens, 1)
        party.on_step(StepReport(party.step, loss, seat.answer_tokens, norm, rate, self.watch.seconds))
        seat.micro, seat.loss, seat.answer_tokens, seat.warned = 0, 0.0, 0, seat.answer.stopping
        self.watch = Stopwatch()

    def _ask(self, message: pb.Ask) -> None:
        party = self._party
        text, image, prompt = self._read(message)
        if text.answers.any():
            raise CodecError("text: a question holds no answers")
        party.model.eval()
        streamer = _TokenStreamer(self._peer)
        party.model.generate(text, image, prompt, message.max_new_tokens, party.prompter.end, streamer)


class _TokenStreamer:
    """transformers calls `put` with each new token of the batch, and `end`."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def put(self, value: Tensor) -> None:
        if value.numel():
            self._peer.send(pb.Tokens(ids=value.flatten().tolist()))

    def end(self) -> None:
        self._peer.send(pb.Tokens(last=True))
