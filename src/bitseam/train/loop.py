"""The client's training loop. The server's half of it is driven by the messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError, SessionLostError
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

Batches = Callable[[int], tuple[Tensor, TextBatch]]  # number of a micro-batch -> features (I, M, Dv), text


def train(
    session: ClientSession, recipe: config.Recipe, batches: Batches, told: Callable[[], bool] = lambda: False
) -> Path:
    """Train from the step that the session stands at to `recipe.train.steps`; returns the client's last checkpoint.

    told: whether to stop after the step under way, with both halves written.

    Both halves are checkpointed below `recipe.folder`: as calibrated, every so many steps, and at the end. Where the
    server comes back at an earlier step, so does the client. Raises NonFiniteError, PeerGoneError, RefusedError and
    what the data raises; the last checkpoint is then intact.
    """
    plan = recipe.train
    stepper = Stepper(session.model, recipe.client.rate, plan)
    with RunLog(recipe.folder, "client", plan.steps) as progress:
        while True:
            try:
                _begin(session, recipe, stepper, batches)
                while session.reached < plan.steps:
                    step = session.reached + 1
                    progress.step(step, _step(session, recipe, stepper, batches, step))
                    if plan.sharing == "averaged" and step % plan.round == 0:
                        session.average(step)
                    stop = told()
                    if step % plan.checkpoint_every == 0 or step == plan.steps or session.stopping or stop:
                        write_checkpoints(session, recipe, stepper)
                    if stop:
                        break
                return folder_of(recipe.folder, "client", session.reached)
            except SessionLostError as error:
                log.warning("%s", error)
            except BitseamError as error:
                fault = f"training stopped in step {session.reached + 1} of {plan.steps}: {error}"
                if any((recipe.folder / "client").glob("step-*/config.json")):
                    fault += f"\nCheckpoints below {recipe.folder}/client are intact"
                raise type(error)(fault) from error


def _begin(session: ClientSession, recipe: config.Recipe, stepper: Stepper, batches: Batches) -> None:
    """Be where the server is: at a checkpoint, or calibrated for the first step."""
    run, steps = held(recipe, "client")
    if (run, session.reached in steps) == (session.run, True):
        folder = folder_of(recipe.folder, "client", session.reached)
        log.info("going on from %s", folder)
        restore_client(session.model, folder, recipe)
        session.restore(session.reached, resume_training(load_training(folder), stepper))
        if recipe.train.clients > 1:  # a server of several does not go back with one of them
            session.forget_samples()
        if not session.ledger.coded_bytes("Forward", "image"):  # a process that begins anew
            session.ledger.restore(load_crossed(folder))
    else:
        drawn = [batches(i) for i in range(recipe.train.calibrate)]
        features = torch.cat([features.detach() for features, _ in drawn])
        session.calibrate(features, TextBatch.join([text for _, text in drawn]))
        write_checkpoints(session, recipe, stepper)


def write_checkpoints(session: ClientSession, recipe: config.Recipe, stepper: Stepper) -> None:
    """Both halves, at the present step: the server's first, so that ours never is of a step that it does not have."""
    session.checkpoint(session.reached)
    identity = Identity(session.run, session.reached)
    state = training_state(stepper, session.state())
    save_client(session.model, recipe, identity, recipe.folder, state, session.ledger.rows())


def _step(
    session: ClientSession, recipe: config.Recipe, stepper: Stepper, batches: Batches, step: int
) -> dict[str, Any]:
    """One optimiser step -> its row in the log. Bytes are totals since the run began."""
    plan = recipe.train
    start, loss, answer_tokens, coded_bytes, predicted_bytes = time.perf_counter(), 0.0, 0, 0, 0.0
    session.watch.seconds.clear()
    for micro in range(plan.accumulate):
        with session.watch("data"):
            features, text = batches((step - 1) * plan.accumulate + micro)
        last = micro == plan.accumulate - 1
        part = session.step(step, micro, last, features, text)
        loss, answer_tokens = loss + part.loss, answer_tokens + part.answer_tokens
        coded_bytes, predicted_bytes = coded_bytes + part.coded_bytes, predicted_bytes + part.predicted_bytes
    rate = stepper.rate
    with session.watch("client step"):
        norm = stepper.step(answer_tokens)
    up, down = session.ledger.total("up"), session.ledger.total("down")
    return {
        "loss": loss / max(answer_tokens, 1),
        "answer_tokens": answer_tokens,
        "norm": norm,
        "rate": rate,
        "up_bytes": up.bytes,
        "down_bytes": down.bytes,
        "coded_bytes": coded_bytes,  # of this step's entropy-coded features, and what their tables predict
        "predicted_bytes": predicted_bytes,
        "fp16_bytes": up.fp16_bytes + down.fp16_bytes,
        "step_seconds": time.perf_counter() - start,
        "seconds": dict(session.watch.seconds),
    }
