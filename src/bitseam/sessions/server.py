"""The server's session: codes in, loss, gradients out; then the optimiser steps."""

from __future__ import annotations

import logging
import math
import secrets
import time
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor

from bitseam.codecs import Fp32
from bitseam.errors import (
    BitseamError,
    CodecError,
    NonFiniteError,
    PeerGoneError,
    QuotaError,
    RefusedError,
    StateError,
    WireError,
    printable,
)
from bitseam.sessions.faults import fault_of, theirs
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.limits import require_context, require_image, require_rows
from bitseam.sessions.party import ServerParty, StepReport
from bitseam.sessions.peer import Peer, Stopwatch
from bitseam.sessions.seat import Seat
from bitseam.streams.coded import decode, encode
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import kept_dictionary, read_text
from bitseam.transport import Channel
from bitseam.wire import VERSION, same_terms
from bitseam.wire import messages_pb2 as pb

log = logging.getLogger(__name__)

current_session: ContextVar[ServerSession | None] = ContextVar("current_session", default=None)  # for logs
_WEIGHTS = Fp32()  # of client halves that are averaged


class ServerSession:
    """Serves one channel until the client says goodbye.

    id: 8 hex digits, for logs. client: its name. purpose: "train" or "ask", "" until it says hello.
    """

    def __init__(self, party: ServerParty, channel: Channel) -> None:
        self.ledger = Ledger(list(party.model.receivers().values()))
        self.id, self.client, self.purpose = secrets.token_hex(4), channel.name, ""
        self._began = time.monotonic()
        self.training = False
        self.watch = Stopwatch()
        self._party = party
        self._peer = Peer(channel, "server", self.ledger, party.limits)
        self._who = channel.peer
        self._generator = torch.Generator()
        self._seat: Seat | None = None
        self._stay = ExitStack()  # among its client's sessions
        self._charged = 0  # bytes of the ledger that are in its client's quota

    @property
    def since(self) -> float:
        """When it began, seconds since 1970 by the clock as it goes now, which may have been set since."""
        return time.time() - (time.monotonic() - self._began)

    @property
    def step(self) -> int:
        """The last whole step of the client, where it trains, or of the server."""
        return self._party.step if self._seat is None else self._seat.step

    def run(self) -> None:
        """Raises what ended the session before its time; the client has then been told as much as it may know."""
        current_session.set(self)
        party = self._party
        try:
            if self._open():
                while not isinstance(message := self._peer.receive(party.limits.idle_seconds), pb.Goodbye):
                    self._charge()
                    if self._stops_at(message):
                        self._refuse(pb.STOPPING, "the server is being stopped")
                        return
                    if isinstance(message, pb.Average):
                        self._average(message)
                    else:
                        with party.turn(self.client):
                            party.do(type(message).__name__, partial(self._answer, message))
                self._leave()
                if message.reason:
                    raise PeerGoneError(f"the client stopped: {printable(message.reason)}")
        except PeerGoneError:
            raise  # it may come back, and finds its seat
        except Exception as error:
            self._leave()
            if not isinstance(error, RefusedError) or isinstance(error, QuotaError):  # else it has been told
                self._refuse(*fault_of(error))
            raise
        finally:
            if self._seat is not None and self._seat.connection is self:
                self._party.averaging.leave(self._seat)
            self._count()
            self._stay.close()

    def _open(self) -> bool:
        party = self._party
        hello = self._peer.receive(party.limits.hello_seconds)
        self.training = hello.purpose == pb.TRAIN
        self.purpose = "train" if self.training else "ask"
        # A client trains in one session, however often its link breaks.
        self._stay.enter_context(party.quotas.session(self.client, "training" if self.training else self))
        self._charge()
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
            shown = printable("; ".join(f"{d.field}: client {d.client}, server {d.server}" for d in differences), 2000)
            raise RefusedError(f"refused {self._who}: {shown}")
        try:
            require_image(hello.image_tokens, party.limits)
            if self.training:
                self._seat, welcome = party.do("Hello", partial(party.admit, hello, self.client, self))
                party.averaging.enter(self._seat)
            else:
                welcome = pb.Welcome(session=secrets.token_bytes(16), run=bytes.fromhex(party.run), step=party.step)
        except RefusedError as error:
            self._refuse(pb.TERMS_DIFFER, str(error))
            raise
        welcome.limits.CopyFrom(party.limits.told())
        self._peer.send(welcome)
        return True

    def _leave(self) -> None:
        """The client is gone for good, unless it speaks through a newer connection."""
        if self._seat is not None and self._seat.connection is self:
            self._party.leave(self._seat)

    def _count(self) -> None:
        total = self.ledger.total().bytes
        self._party.quotas.count(self.client, bytes=total - self._charged)
        self._charged = total

    def _charge(self) -> None:
        """Count what has crossed. Raises QuotaError where that is more than the client may use."""
        self._count()
        self._party.quotas.require(self.client)

    def _stops_at(self, message: object) -> bool:
        """Whether to stop here: a client that trains was told so in its last step, and both have written that step."""
        begins = isinstance(message, pb.Forward) and message.micro == 0 and self._seat is not None and self._seat.warned
        return self._party.stopping.is_set() and (begins or isinstance(message, pb.Ask))

    def _refuse(self, fault: pb.Fault, reason: str, differences: list[pb.Difference] | None = None) -> None:
        self._party.on_refusal(pb.Fault.Name(fault).lower())
        try:
            self._peer.send(pb.Refuse(fault=fault, reason=printable(reason, 2000), differences=differences))
        except BitseamError as error:
            log.debug("could not tell the client: %s", error)

    def _answer(self, message: object) -> None:
        if isinstance(message, pb.Forward):
            self._forward(message)
        elif isinstance(message, pb.Ask):
            self._ask(message)
        elif isinstance(message, pb.Checkpoint):
            self._checkpoint(message)
            self._peer.send(pb.Ack(step=message.step))
        elif isinstance(message, pb.Calibrate):
            self._calibrate(message)
            self._peer.send(pb.Ack(step=self._party.step))

    def _checkpoint(self, message: pb.Checkpoint) -> None:
        seat = self._require_seat()
        if message.step != seat.step:
            raise WireError(f"checkpoint of step {message.step} where {seat.step} is the last whole one")
        self._party.save(seat)

    def _average(self, message: pb.Average) -> None:
        """In the session's own thread: it waits for other clients."""
        seat = self._require_seat()
        if message.step != seat.step:
            raise WireError(f"average of step {message.step} where {seat.step} is the last whole one")
        with theirs():
            weights = decode(_WEIGHTS, message.weights, tuple(message.weights.shape), "weights", torch.device("cpu"))
        if not message.step:
            raise WireError("average of step 0: no step is whole yet")
        mean, clients = self._party.averaging.average(seat, int(message.step), weights)
        self._peer.send(pb.Averaged(step=message.step, weights=encode(_WEIGHTS, mean), clients=clients))

    def _require_seat(self) -> Seat:
        """Raises StateError where the client has come back through another connection since."""
        seat = self._seat
        if seat is None or seat.connection is not self or self._party.seats.get(seat.name) is not seat:
            raise StateError("this connection is over: its client has come back through another")
        return seat

    @theirs()
    def _calibrate(self, message: pb.Calibrate) -> None:
        self._require_seat()
        self._party.face(self.client)
        self._party.learn(self.client, message)

    @theirs()
    def _read(self, message: pb.Forward | pb.Ask) -> tuple[TextBatch, dict[str, Tensor]]:
        """The batch, and levels (..., C) of each stream. Raises CodecError for a stream too few or too many."""
        party, model = self._party, self._party.model
        text = read_text(message.text, party.prompter.vocabulary, kept_dictionary(model), model.hides_prompts)
        came = {coded.stream: coded for coded in message.streams}
        image = came.get(model.receivers()["image"].number, pb.Coded()).shape
        tokens = image[1] if len(image) == 3 else 0
        new = message.max_new_tokens if isinstance(message, pb.Ask) else 0
        require_rows(text, party.limits, tokens, new)
        require_context(text, training=not new)
        levels, known = {}, party.samples(self.client) if isinstance(message, pb.Forward) else {}
        for name, due in model.tokens_due(text, tokens).items():
            receiver = model.receivers()[name]
            levels[name] = receiver.decode(came.pop(receiver.number, pb.Coded()), due, party.device, known.get(name))
        if came:
            agreed = ", ".join(f"{r.number} ({name})" for name, r in model.receivers().items())
            raise CodecError(f"codes of streams {sorted(came)}, which were not agreed; those are {agreed}")
        return text, levels

    def _forward(self, message: pb.Forward) -> None:
        party, watch, seat = self._party, self.watch, self._require_seat()
        request = digest(message)
        if request == seat.request:
            self._peer.send(seat.answer)
            return
        if (message.step, message.micro) != (seat.step + 1, seat.micro):
            here, due = f"step {message.step}", f"{seat.step + 1}"
            raise WireError(f"{here} where {due} is due, micro-batch {message.micro} where {seat.micro} is due")
        if message.micro == 0:
            party.quotas.require(self.client, steps=1)
        party.touch()
        party.face(seat.name)
        with watch("decode"):
            self._calibrate(message.news)
            text, levels = self._read(message)
        party.model.train()
        with watch("server forward and backward"):
            for received in levels.values():
                received.requires_grad_()
            bf16 = party.recipe.train.autocast == "bf16"
            with torch.autocast(party.device.type, torch.bfloat16, enabled=bf16):
                loss = party.model.loss(text, levels)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteError(f"the loss of step {message.step} is {value}; try a lower server.rate")
            loss.backward()
        answer_tokens = int(text.answers.sum())
        with watch("encode"):
            self._generator.manual_seed(seed_of(party.recipe.seed, message.step, message.micro))
            seat.answer = pb.Backward(
                step=message.step,
                micro=message.micro,
                loss=value,
                answer_tokens=answer_tokens,
                streams=[
                    receiver.encode_gradient(levels[name], self._generator)
                    for name, receiver in party.model.receivers().items()
                ],
                stopping=message.last and party.stopping.is_set(),
            )
        seat.request, seat.micro = request, message.micro + 1
        seat.loss, seat.answer_tokens = seat.loss + value, seat.answer_tokens + answer_tokens
        try:
            self._peer.send(seat.answer)  # before the update, which the client need not wait for
        finally:  # a client that is gone may come back for the answer, and the step has happened
            if message.last:
                self._update(seat)

    def _update(self, seat: Seat) -> None:
        party = self._party
        with self.watch("server step"):
            norm, rate = party.update(seat)
        party.quotas.count(self.client, steps=1)
        loss = seat.loss / max(seat.answer_tokens, 1)
        party.on_step(StepReport(party.step, loss, seat.answer_tokens, norm, rate, self.watch.seconds, seat.name))
        seat.micro, seat.loss, seat.answer_tokens, seat.warned = 0, 0.0, 0, seat.answer.stopping
        self.watch = Stopwatch()

    def _ask(self, message: pb.Ask) -> None:
        party = self._party
        if self.training:
            self._require_seat()
        party.face(self.client)
        text, levels = self._read(message)
        if text.answers.any():
            raise CodecError("text: a question holds no answers")
        party.model.eval()
        streamer = _TokenStreamer(self._peer)
        party.model.generate(text, levels, message.max_new_tokens, party.prompter.end, streamer)


def seed_of(seed: int, step: int, micro: int) -> int:
    """The seed of one micro-batch's gradient codes, of 64 bits, whatever the recipe's."""
    place = (seed << 40) + (step << 16) + micro
    if place < 2**64:
        return place
    return int.from_bytes(blake2b(str(place).encode(), digest_size=8).digest(), "big")


def digest(message: pb.Forward) -> bytes:
    """By which a repeated message is known."""
    return blake2b(message.SerializeToString(deterministic=True)).digest()


class _TokenStreamer:
    """transformers calls `put` with each new token of the batch, and `end`."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def put(self, value: Tensor) -> None:
        if self._peer.channel.gone:  # and does not hear the answer
            raise PeerGoneError("the client went away")
        if value.numel():
            self._peer.send(pb.Tokens(ids=value.flatten().tolist()))

    def end(self) -> None:
        self._peer.send(pb.Tokens(last=True))
