"""The client's training loop. The server's half of it is driven by the messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError
from bitseam.parties.checkpoint import Identity, save_client
from bitseam.parties.client import ClientSession
from bitseam.parties.optimise import Stepper
from bitseam.parties.runlog import RunLog
from bitseam.parties.text import TextBatch

Batches = Callable[[int], tuple[Tensor, TextBatch]]  # number of a micro-batch -> features (I, M, Dv), text


def train(session: ClientSession, recipe: config.Recipe, run: str, batches: Batches, out: Path) -> Path:
    """Calibrate, train for `recipe.train.steps`, checkpoint both halves; returns the client's last checkpoint.

    run: the identity of this pair of halves, from the server's welcome. Raises NonFiniteError, PeerGoneError,
    RefusedError and what the data raises; the last checkpoint is then intact.
    """
    plan, model = recipe.train, session.model
    _calibrate(session, plan.calibrate, batches)
    stepper = Stepper(model.parameters(), recipe.client.rate, plan)
    with RunLog(out, "client", plan.steps) as log:
        for step in range(1, plan.steps + 1):
            try:
                log.step(step, _step(session, recipe, stepper, batches, step))
                if step % plan.checkpoint_every == 0 or step == plan.steps:
                    session.checkpoint(step)
                    saved = save_client(model, recipe, Identity(run, step), out)
            except BitseamError as error:
                where = f"training stopped in step {step} of {plan.steps}"
                raise type(error)(f"{where}: {error}\nCheckpoints below {out}/client are intact") from error
    return saved


def _step(
    session: ClientSession, recipe: config.Recipe, stepper: Stepper, batches: Batches, step: int
) -> dict[str, Any]:
    """One optimiser step -> its row in the log. Bytes are totals since the session began."""
    plan = recipe.train
    start, loss, answer_tokens, coded_bytes, predicted_bytes = time.perf_counter(), 0.0, 0, 0, 0.0
    session.watch.seconds.clear()
    for micro in range(plan.accumulate):
        with session.watch("data"):
            features, text = batches((step - 1) * plan.accumulate + micro)
        last = micro == plan.accumulate - 1
        part = session.step(step, micro, last, features, text, recipe.seam.image_up.distortion_weight)
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


def _calibrate(session: ClientSession, count: int, batches: Batches) -> None:
    drawn = [batches(i) for i in range(count)]
    features = torch.cat([features.detach() for features, _ in drawn])
    session.calibrate(features, TextBatch.join([text for _, text in drawn]))
