"""The server half with its optimiser, and what it remembers of the client that trains it.

A step happens once: a client whose link broke comes back with its session and repeats what was not answered; what had
been computed is answered from memory. Where either process began anew, both go back to the newest step that both have a
checkpoint of.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bitseam import config
from bitseam.errors import RefusedError
from bitseam.parties.checkpoint import (
    Identity,
    Locate,
    build_server,
    folder_of,
    held,
    load_server,
    load_training,
    save_server,
)
from bitseam.parties.device import choose_device
from bitseam.parties.optimise import Stepper
from bitseam.parties.resume import resume_training, training_state
from bitseam.parties.seam import build_seam, terms
from bitseam.parties.tables import with_kept_tables
from bitseam.parties.text import Prompter
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
class Seat:
    """Where the client that trains stands, as long as this process lives.

    micro: micro-batches of the step under way that are in; loss and answer_tokens: their sums. request: digest of the
    last Forward, and answer: its Backward, which a repeated one gets again.
    """

    name: str
    session: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    micro: int = 0
    loss: float = 0.0
    answer_tokens: int = 0
    request: bytes = b""
    answer: pb.Backward = field(default_factory=pb.Backward)
    warned: bool = False  # that the server is being stopped


class ServerParty:
    """The server half; sessions share it, one message at a time.

    on_step is called after each optimiser step. `stopping` is set when the server is to stop at the next whole step.
    """

    def __init__(self, recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> None:
        """Go on where the recipe's folder ends, or begin anew.

        checkpoint: a folder to answer from instead; nobody can train it then. Raises ConfigError where the folder holds
        the run of another recipe, and ModelError.
        """
        self.recipe = recipe
        self.prompter = Prompter(recipe.text, locate)
        self.run, self.step = secrets.token_hex(16), 0
        self.seat: Seat | None = None
        self.stopping = threading.Event()
        self.on_step: Callable[[StepReport], None] = lambda report: None
        # One thread touches the model, whatever the number of sessions, and builds it too: OpenMP gives each thread
        # that computes a pool of its own, and where those outnumber the cores each step takes a third longer.
        self.compute: Executor = ThreadPoolExecutor(1, "model")
        self.answers_only = checkpoint is not None
        self._locate = locate
        self._untouched = True  # since the half was built or loaded
        if checkpoint is None:
            run, steps = held(recipe, "server")
            checkpoint = folder_of(recipe.folder, "server", steps[-1]) if run else None
        self.compute.submit(self._load, checkpoint).result()

    def terms(self, training: bool) -> dict[str, str]:
        """What a client must have alike, as it stands now."""
        prompter, weights = self.prompter, str(Identity(self.run, self.step))
        return terms(self.recipe, prompter.vocabulary, prompter.fingerprint, None if training else weights)

    def admit(self, hello: pb.Hello, name: str) -> tuple[Seat, pb.Welcome]:
        """Seat a client that wants to train, with the half at the step that both sides go on from.

        Raises RefusedError where the two hold different runs or no step in common, or another client trains.
        """
        seat = self.seat
        if seat is not None and seat.name != name:
            raise RefusedError(f"another client trains here: {seat.name or 'one without a certificate'}")
        if self.answers_only:
            raise RefusedError("this server was started to answer from one checkpoint (--checkpoint), not to train")
        resumed = seat is not None and seat.session == hello.session
        if seat is None or not resumed:
            self._go_back(self._common_step(hello))
            seat = self.seat = Seat(name)
        return seat, pb.Welcome(session=seat.session, run=bytes.fromhex(self.run), step=self.step, resumed=resumed)

    def leave(self, seat: Seat | None) -> None:
        """A client is gone for good; what it had gathered for a step under way is forgotten."""
        if seat is not None and seat is self.seat:
            self.seat = None

    def update(self, seat: Seat) -> tuple[float, float]:
        """The optimiser's step at the end of one; returns the gradient's norm and the rate."""
        rate, norm = self.stepper.rate, self.stepper.step(seat.answer_tokens)
        self.step += 1
        return norm, rate

    def touch(self) -> None:
        """The half is about to differ from its checkpoint."""
        self._untouched = False

    def save(self) -> None:
        """Write a checkpoint of the present step."""
        identity = Identity(self.run, self.step)
        state = training_state(self.stepper)
        log.info("checkpoint: %s", save_server(self.model, self.recipe, identity, self.recipe.folder, state))
        self._untouched = True

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
            self.model, _, identity = load_server(folder, self._locate, self.recipe.seam)
            self.run, self.step = identity.run, identity.step
        self.model.to(choose_device(self.recipe.device))
        self.device = next(self.model.parameters()).device
        self.seam = with_kept_tables(build_seam(self.recipe.seam), self.model)
        self.stepper = Stepper(self.model, self.recipe.server.rate, self.recipe.train)
        if folder is not None and not self.answers_only:
            resume_training(load_training(folder), self.stepper)
        self._untouched = True
