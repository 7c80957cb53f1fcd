"""The server half with its optimiser, and what it remembers of the clients that train it.

A step happens once: a client whose link broke comes back with its session and repeats what was not answered; what had
been computed is answered from memory. Where either process began anew, both go back to the newest step that both have a
checkpoint of.

Several clients share the half: each has a seat, the statistics and tables that its codes are made with, and gradients
of its own until its step is whole. Its requests come one at a time, and are answered in the order in which they arrive,
so that nobody gets ahead. Then each client goes on from its own newest checkpoint, and the server from its own.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import torch

from bitseam import config
from bitseam.codecs.delta import Changes
from bitseam.errors import CodecError, RefusedError
from bitseam.models.device import choose_device
from bitseam.models.proof import Proof, prove
from bitseam.runs.checkpoint import (
    Identity,
    Locate,
    build_server,
    folder_of,
    held,
    load_server,
    load_training,
    save_server,
)
from bitseam.runs.optimise import Stepper
from bitseam.runs.resume import below, own_part, resume_training, training_state
from bitseam.sessions.averaging import Averaging
from bitseam.sessions.limits import require_fit, session_limits
from bitseam.sessions.quota import Quotas
from bitseam.sessions.seat import Seat
from bitseam.sessions.terms import terms
from bitseam.streams import remember
from bitseam.text.prompts import Prompter
from bitseam.text.symbols import keep_dictionary, read_dictionary
from bitseam.wire import messages_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class StepReport:
    """What the server knows of one optimiser step. seconds: by part, summed over micro-batches."""

    step: int
    loss: float  # mean over answer tokens, nats
    answer_tokens: int
    norm: float
    rate: float
    seconds: dict[str, float]
    client: str  # the name of the one whose step it is


class ServerParty:
    """The server half; sessions share it, one message at a time.

    on_step is called after each optimiser step, on_request with the kind of a request that was answered, how long it
    waited and how long it took, seconds, and on_refusal with the fault of one that was not; quotas say what each client
    may use. `stopping` is set when the server is to stop at the next whole step.
    """

    def __init__(self, recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> None:
        """Go on where the recipe's folder ends, or begin anew.

        checkpoint: a folder to answer from instead; nobody can train it then. Raises ConfigError where the folder holds
        the run of another recipe, and ModelError.
        """
        self.recipe = recipe
        self.prompter = Prompter(recipe.text, locate)
        self.run, self.step = secrets.token_hex(16), 0
        self.seats: dict[str, Seat] = {}
        self.averaging = Averaging(recipe.train.steps // recipe.train.round * recipe.train.round)
        self.stopping = threading.Event()
        self.on_step: Callable[[StepReport], None] = lambda report: None
        self.on_request: Callable[[str, float, float], None] = lambda kind, waited, took: None
        self.on_refusal: Callable[[str], None] = lambda fault: None
        self.asked = 0  # requests in the queue or with the model
        self._asking = threading.Lock()
        self.quotas = Quotas()
        # One thread touches the model, whatever the number of sessions, and builds it too: OpenMP gives each thread
        # that computes a pool of its own, and where those outnumber the cores each step takes a third longer.
        self.compute: Executor = ThreadPoolExecutor(1, "model")
        self.answers_only = checkpoint is not None
        self._turns: dict[str, threading.Lock] = {}
        self._locate = locate
        self._known: dict[str, pb.Calibrate] = {}  # of each client: what its codes are made with
        self._samples: dict[str, dict[str, Changes]] = {}  # of each client: its images as they last were, by stream
        self._facing: Seat | None = None  # whose gradients are gathered in the half
        self._untouched = True  # since the half was built or loaded
        self._saved = -1  # the step of the last checkpoint
        if checkpoint is None:
            run, steps = held(recipe, "server")
            checkpoint = folder_of(recipe.folder, "server", steps[-1]) if run else None
        self.proof: Proof | None = None
        self.compute.submit(self._load, checkpoint).result()
        self.limits = session_limits(recipe, self.prompter.vocabulary, self.model.ways.positions)

    def do(self, kind: str, work: Callable[[], T]) -> T:
        """Have the thread that touches the model do `work`, in turn; what is logged there tells the session too."""
        asked, context = time.perf_counter(), copy_context()
        with self._asking:
            self.asked += 1

        def timed() -> T:
            began = time.perf_counter()
            try:
                return context.run(work)
            finally:
                with self._asking:
                    self.asked -= 1
                self.on_request(kind, began - asked, time.perf_counter() - began)

        return self.compute.submit(timed).result()

    def terms(self, training: bool) -> dict[str, str]:
        """What a client must have alike, as it stands now."""
        weights = None if training else str(Identity(self.run, self.step))
        return terms(self.recipe, self.model.receivers(), self.prompter, weights)

    def admit(self, hello: pb.Hello, name: str, connection: object) -> tuple[Seat, pb.Welcome]:
        """Seat a client that wants to train, at the step that both sides go on from.

        connection: through which it speaks from now on, and through no other.
        Raises RefusedError where the two hold different runs or no step in common, or all seats are taken.
        """
        if self.answers_only:
            raise RefusedError("this server was started to answer from one checkpoint (--checkpoint), not to train")
        seat = self.seats.get(name)
        resumed = seat is not None and seat.session == hello.session
        if seat is None or not resumed:
            if seat is None and len(self.seats) >= self.recipe.train.clients:
                taken = ", ".join(repr(other) for other in self.seats)
                raise RefusedError(f"train.clients is {self.recipe.train.clients}, and others train here: {taken}")
            step = self._common_step(hello)
            if self.recipe.train.clients == 1:
                self._go_back(step)
            else:
                self._samples.pop(name, None)  # the half stays where it is, and the client is at an earlier step
            seat = self.seats[name] = Seat(name, step, averaged=step - step % self.recipe.train.round)
        seat.connection = connection
        step = 0 if resumed else seat.step
        return seat, pb.Welcome(session=seat.session, run=bytes.fromhex(self.run), step=step, resumed=resumed)

    def leave(self, seat: Seat) -> None:
        """A client is gone for good; what it had gathered for a step under way is forgotten."""
        if self.seats.get(seat.name) is seat:
            del self.seats[seat.name]
            if self.recipe.train.clients > 1:
                self._samples.pop(seat.name, None)

    def turn(self, name: str) -> threading.Lock:
        """Held while the half works for a client: however many sessions it has, others wait for one message of it."""
        return self._turns.setdefault(name, threading.Lock())

    def learn(self, name: str, news: pb.Calibrate) -> None:
        """What a client's codes are made with from now on. Raises CodecError for what cannot be."""
        self._untouched = False
        self._apply(news)
        remember(self._known.setdefault(name, pb.Calibrate()), news)

    def face(self, name: str) -> None:
        """Read codes of this client from now on, and gather its gradients."""
        seat = self.seats.get(name)
        if self._facing is not None and self._facing is not seat:
            self._facing.gradients = [p.grad for p in self.stepper.parameters]
        if seat is not None and self._facing is not seat:
            for parameter, gradient in zip_longest(self.stepper.parameters, seat.gradients):
                parameter.grad = gradient
            seat.gradients = []
        if self._facing is not seat or seat is None:
            self._apply(self._known.get(name, pb.Calibrate()))
            self._facing = seat

    def samples(self, name: str) -> dict[str, Changes]:
        """A client's images as they last were, by stream, of streams that carry changes."""
        whose = name if self.recipe.train.clients > 1 else ""
        if whose not in self._samples:
            ends = {stream: receiver.changes() for stream, receiver in self.model.receivers().items()}
            self._samples[whose] = {stream: end for stream, end in ends.items() if end is not None}
        return self._samples[whose]

    def update(self, seat: Seat) -> tuple[float, float]:
        """The optimiser's step at the end of one; returns the gradient's norm and the rate."""
        rate, norm = self.stepper.rate, self.stepper.step(seat.answer_tokens)
        self.step += 1
        seat.step += 1
        return norm, rate

    def touch(self) -> None:
        """The half is about to differ from its checkpoint."""
        self._untouched = False

    def save(self, seat: Seat) -> None:
        """Write a checkpoint of the present step; of several clients' wishes for one, every so many steps count."""
        train = self.recipe.train
        if train.clients > 1 and 0 <= self._saved > self.step - train.checkpoint_every and seat.step < train.steps:
            return
        identity = Identity(self.run, self.step)
        own = {
            f"client.{name}": torch.frombuffer(bytearray(news.SerializeToString(deterministic=True)), dtype=torch.uint8)
            for name, news in self._known.items()
            if news.ListFields()
        }
        if train.clients == 1:  # others begin anew with what they remember
            for stream, end in self.samples(seat.name).items():
                own |= {f"stream.{stream}.{part}": value for part, value in end.state().items()}
        state = training_state(self.stepper, own)
        log.info("checkpoint: %s", save_server(self.model, self.recipe, identity, self.recipe.folder, state))
        self._untouched, self._saved = True, self.step

    def _common_step(self, hello: pb.Hello) -> int:
        """The newest step that both sides have a checkpoint of; 0 where neither has come farther."""
        _, ours = held(self.recipe, "server")
        theirs = [int(step) for step in hello.steps]
        if hello.run and hello.run.hex() != self.run:
            raise RefusedError(
                f"the client's folder holds checkpoints of run {hello.run.hex()[:8]} (steps {theirs}), the server's is "
                f"run {self.run[:8]} (steps {ours or 'none'}): begin anew with empty folders on both sides, or bring "
                "back the folder that is missing"
            )
        if self.recipe.train.clients > 1:
            return max(theirs, default=0)
        common = set(ours) & set(theirs)
        if not common and (theirs or any(ours)):
            raise RefusedError(
                f"no step to go on from: the client has checkpoints of steps {theirs or 'none'}, the server of {ours} "
                f"(run {self.run[:8]}): begin anew with empty folders on both sides, or bring back what is missing"
            )
        return max(common, default=0)

    def _go_back(self, step: int) -> None:
        """Be at the checkpoint of `step`, or as built where there is none yet."""
        if not self._untouched or self.step != step:
            folder = folder_of(self.recipe.folder, "server", step)
            log.info("going back from step %d to %d", self.step, step)
            self._load(folder if folder.exists() else None)

    def _load(self, folder: Path | None) -> None:
        torch.manual_seed(self.recipe.seed)
        if folder is None:
            self.model, self.step = build_server(self.recipe, self._locate), 0
        else:
            self.model, _, identity = load_server(folder, self._locate, self.recipe.streams)
            self.run, self.step = identity.run, identity.step
        self.model.to(choose_device(self.recipe.device))
        self.device = next(self.model.parameters()).device
        if self.proof is None:
            self.proof = prove(self.model, self.recipe, not self.answers_only)
            ids = max(self.prompter.tokenizer.get_vocab().values()) + 1
            require_fit(self.recipe, ids, self.model.language.vocabulary, self.proof.ways.positions)
            log.info("%s", self.proof)
        self.model.ways = self.proof.ways
        train = self.recipe.train
        self.stepper = Stepper(self.model, self.recipe.server.rate, replace(train, steps=train.steps * train.clients))
        self._known, self._samples, self._facing = {}, {}, None
        if folder is not None and (not self.answers_only or (folder / "training.safetensors").exists()):
            state = load_training(folder)
            own = own_part(state) if self.answers_only else resume_training(state, self.stepper)
            told = below("client.", own)
            self._known = {name: pb.Calibrate.FromString(raw.numpy().tobytes()) for name, raw in told.items()}
            for stream, end in self.samples("").items() if train.clients == 1 else ():
                end.restore(below(f"stream.{stream}.", own))
        self._untouched, self._saved = True, -1 if folder is None else self.step

    def _apply(self, news: pb.Calibrate) -> None:
        if news.dictionary:
            keep_dictionary(self.model, read_dictionary(news.dictionary))
        receivers = list(self.model.receivers().values())
        for told in news.streams:
            if told.stream >= len(receivers):
                raise CodecError(f"statistics of stream {told.stream}, which was not agreed")
            receivers[told.stream].learn(told)
