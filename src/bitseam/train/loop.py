"""The client's training loop. The server's half of it is driven by the messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError, SessionLostError, UsageError
from bitseam.runs.checkpoint import (
    Identity,
    folder_of,
    held,
    load_crossed,
    load_training,
    restore_client,
    save_client,
)
from bitseam.runs.optimise import Stepper
from bitseam.runs.resume import resume_training, training_state
from bitseam.runs.runlog import RunLog
from bitseam.sessions.client import ClientSession
from bitseam.text.batch import TextBatch

log = logging.getLogger(__name__)

Micro = tuple[Tensor, TextBatch]  # one micro-batch: features (I, M, Dv), text
Batches = Callable[[int], Micro]  # by the micro-batch's number


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step, as OUT/client/log.jsonl has it.

    loss: mean over answer tokens, nats. norm: of the gradient, before clipping. rate: of learning. up_bytes,
    down_bytes, fp16_bytes: that have crossed since the run began, and what they would have been at fp16. coded_bytes,
    predicted_bytes: of this step's entropy-coded features, and what their tables predict. step_seconds: that it took;
    seconds: by part.
    """

    step: int
    loss: float
    answer_tokens: int
    norm: float
    rate: float
    up_bytes: int
    down_bytes: int
    coded_bytes: int
    predicted_bytes: float
    fp16_bytes: int
    step_seconds: float
    seconds: dict[str, float]


Callback = Callable[[StepRecord], object]  # what it returns, where true, ends the training after this step


class Training:
    """A session's training, a step at a time, from the step that it stands at to `recipe.train.steps`.

    Both halves are checkpointed below `recipe.folder`: as calibrated, every so many steps, and at the end. shown: with
    a progress bar. begun: whether it is where the server is.
    """

    def __init__(self, session: ClientSession, recipe: config.Recipe, batches: Batches, shown: bool = True) -> None:
        self.session = session
        self._recipe, self._batches = recipe, batches
        self._stepper = Stepper(session.model, recipe.client.rate, recipe.train)
        self._log = RunLog(recipe.folder, "client", recipe.train.steps, shown)
        self.begun = self._halfway = False

    @property
    def over(self) -> bool:
        """Whether all steps of the recipe are taken."""
        return self.session.reached >= self._recipe.train.steps

    def run(self, steps: int | None = None, callbacks: Sequence[Callback] = ()) -> Path:
        """Take `steps` steps, or all that are left; returns the client's last checkpoint, which is of the last step.

        Where the server comes back at an earlier step, so does the client. Raises NonFiniteError, PeerGoneError,
        RefusedError and what the data and callbacks raise; the last checkpoint is then intact.
        """
        last = self._recipe.train.steps if steps is None else self.session.reached + steps
        with self._log:
            while True:
                try:
                    self.begin()
                    stop = False
                    while not (stop or self.over):
                        record = self.step(self.draw())
                        wishes = [callback(record) for callback in callbacks]  # each of them is told
                        stop = any(wishes) or self.session.reached >= last
                        self.keep(stop)
                    return self._folder
                except SessionLostError as error:
                    self.go_back()  # where a callback has found it out
                    log.warning("%s", error)
                except BitseamError as error:
                    fault = (
                        f"training stopped in step {self.session.reached + 1} of {self._recipe.train.steps}: {error}"
                    )
                    if any((self._recipe.folder / "client").glob("step-*/config.json")):
                        fault += f"\nCheckpoints below {self._recipe.folder}/client are intact"
                    raise type(error)(fault) from error

    def begin(self) -> None:
        """Be where the server is: at a checkpoint, or calibrated for the first step. Does nothing the second time.

        Raises UsageError after a step that something has broken off.
        """
        if self.begun:
            self._require_whole()
            return
        self._halfway = False  # what had been gathered goes with the weights
        session, recipe = self.session, self._recipe
        run, steps = held(recipe, "client")
        if (run, session.reached in steps) == (session.run, True):
            folder = self._folder
            log.info("going on from %s", folder)
            restore_client(session.model, folder, recipe)
            session.restore(session.reached, resume_training(load_training(folder), self._stepper))
            if recipe.train.clients > 1:  # a server of several does not go back with one of them
                session.forget_samples()
            if not session.ledger.coded_bytes("Forward", "image"):  # a process that begins anew
                session.ledger.restore(load_crossed(folder))
        else:
            drawn = [self._batches(i) for i in range(recipe.train.calibrate)]
            features = torch.cat([features.detach() for features, _ in drawn])
            session.calibrate(features, TextBatch.join([text for _, text in drawn]))
            self.save()
        self.begun = True

    def go_back(self) -> None:
        """The server has come back at an earlier step: have `begin` go there."""
        self.begun = False

    def draw(self) -> Iterator[Micro]:
        """The micro-batches of the step that is due, each when it is asked for."""
        first = self.session.reached * self._recipe.train.accumulate
        return (self._batches(first + micro) for micro in range(self._recipe.train.accumulate))

    def step(self, micros: Iterable[Micro]) -> StepRecord:
        """One optimiser step, of as many micro-batches as the recipe says, and the average that is due after it.

        Raises SessionLostError where the server has come back at an earlier step, which `begin` then goes back to, and
        UsageError before `begin`, where too few micro-batches come, or after a step that something has broken off.
        """
        self._require_whole()
        if not self.begun:
            raise UsageError("a step before its training has begun, or since the server went back: draw another batch")
        try:
            record = self._step(micros)
            values = asdict(record)
            self._log.step(values.pop("step"), values)
            if self._recipe.train.sharing == "averaged" and record.step % self._recipe.train.round == 0:
                self.session.average(record.step)
        except SessionLostError:
            self.go_back()
            raise
        return record

    def keep(self, now: bool = False) -> None:
        """Write checkpoints where they are due, or now. Raises SessionLostError as `step` does."""
        if now or self.over or self.session.reached % self._recipe.train.checkpoint_every == 0 or self.session.stopping:
            self.save()

    def save(self) -> Path:
        """Write both halves, at the present step: the server's first, so that ours never is of a step that it does not
        have; returns ours. Raises UsageError after a step that something has broken off."""
        self._require_whole()
        session = self.session
        try:
            session.checkpoint(session.reached)
        except SessionLostError:
            self.go_back()
            raise
        identity = Identity(session.run, session.reached)
        state = training_state(self._stepper, session.state())
        return save_client(session.model, self._recipe, identity, self._recipe.folder, state, session.ledger.rows())

    @property
    def _folder(self) -> Path:
        return folder_of(self._recipe.folder, "client", self.session.reached)

    def _require_whole(self) -> None:
        if self._halfway:
            raise UsageError(
                f"step {self.session.reached + 1} was broken off, and some of its gradients are missing: open the "
                "client anew, which goes on from the last checkpoint"
            )

    def _step(self, micros: Iterable[Micro]) -> StepRecord:
        session, plan, step = self.session, self._recipe.train, self.session.reached + 1
        start, loss, answer_tokens, coded_bytes, predicted_bytes = time.perf_counter(), 0.0, 0, 0, 0.0
        session.watch.seconds.clear()
        coming = iter(micros)
        for micro in range(plan.accumulate):
            with session.watch("data"):
                drawn = next(coming, None)
            if drawn is None:
                raise UsageError(
                    f"step {step}: {micro} micro-batches came where train.accumulate is {plan.accumulate}; a batch is "
                    "for one step"
                )
            features, text = drawn
            self._halfway = True
            part = session.step(step, micro, micro == plan.accumulate - 1, features, text)
            loss, answer_tokens = loss + part.loss, answer_tokens + part.answer_tokens
            coded_bytes, predicted_bytes = coded_bytes + part.coded_bytes, predicted_bytes + part.predicted_bytes
        rate = self._stepper.rate
        with session.watch("client step"):
            norm = self._stepper.step(answer_tokens)
        self._halfway = False
        up, down = session.ledger.total("up"), session.ledger.total("down")
        return StepRecord(
            step=step,
            loss=loss / max(answer_tokens, 1),
            answer_tokens=answer_tokens,
            norm=norm,
            rate=rate,
            up_bytes=up.bytes,
            down_bytes=down.bytes,
            coded_bytes=coded_bytes,
            predicted_bytes=predicted_bytes,
            fp16_bytes=up.fp16_bytes + down.fp16_bytes,
            step_seconds=time.perf_counter() - start,
            seconds=dict(session.watch.seconds),
        )
