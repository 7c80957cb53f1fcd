"""The server process: holds the language half, listens, trains and answers until it is told to stop."""

from __future__ import annotations

import json
import logging
import queue
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitseam import config
from bitseam.errors import BitseamError, PeerGoneError
from bitseam.parties.checkpoint import Identity, Locate, build_server, load_server, save_server
from bitseam.parties.device import choose_device
from bitseam.parties.runlog import RunLog, peak_memory
from bitseam.parties.seam import build_seam, terms
from bitseam.parties.server import ServerParty, ServerSession, StepReport
from bitseam.parties.text import Prompter
from bitseam.transport import Channel, Listener, Tls

log = logging.getLogger(__name__)

_SESSIONS = 32


def serve(recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    checkpoint: a folder of `runs/NAME/server`, to answer from what was trained. Returns when told to stop; raises the
    error that broke a training session, with what was checkpointed intact.
    """
    party = build_party(recipe, locate, checkpoint)
    tls = Tls.from_folder(recipe.network.certificates, "server") if recipe.network.certificates else None
    ended: queue.Queue[BaseException | None] = queue.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.put(None))
    with RunLog(recipe.folder, "server", recipe.train.steps) as bar:
        party.on_step = lambda report: bar.step(report.step, _row(report))
        listener = Listener(recipe.network.address, _Handler(party, ended), tls, _SESSIONS)
        listener.start()
        log.info("listening on %s; the language half is at step %d", recipe.network.address, party.step)
        try:
            failure = ended.get()
        finally:
            listener.stop(grace=2)
    parameters = sum(p.numel() for p in party.model.parameters())
    summary = {"step": party.step, "parameters": parameters, "peak_memory_bytes": peak_memory()}
    summary_path = recipe.folder / "server" / "summary.json"
    summary_path.parent.mkdir(parents=True, exist_ok=True)
    summary_path.write_text(json.dumps(summary))
    if failure is not None:
        raise failure


def build_party(recipe: config.Recipe, locate: Locate, checkpoint: Path | None = None) -> ServerParty:
    """The server half as a session needs it, fresh or from a checkpoint."""
    compute = ThreadPoolExecutor(1, "model")
    identity = Identity("", 0)
    if checkpoint is None:
        model = compute.submit(build_server, recipe, locate).result()
    else:
        model, _, identity = compute.submit(load_server, checkpoint, locate, recipe.seam).result()
    model.to(choose_device(recipe.device))
    prompter = Prompter(recipe.text, locate)
    party = ServerParty(
        model,
        build_seam(recipe.seam),
        recipe,
        lambda training: terms(
            recipe, prompter.vocabulary, prompter.fingerprint, str(Identity(party.run, party.step)), training
        ),
        prompter.vocabulary,
        prompter.end,
        compute=compute,
    )
    if identity.step:
        party.run, party.step = identity.run, identity.step
    party.on_checkpoint = lambda step: log.info(
        "checkpoint: %s", save_server(model, recipe, Identity(party.run, step), recipe.folder)
    )
    return party


class _Handler:
    """Runs each session; a training session that breaks ends the server, since its half may have stepped alone."""

    def __init__(self, party: ServerParty, ended: queue.Queue[BaseException | None]) -> None:
        self._party, self._ended = party, ended

    def __call__(self, channel: Channel) -> None:
        session = ServerSession(self._party, channel)
        try:
            session.run()
        except Exception as error:
            log.error("%s: %s", channel.peer, error, exc_info=not isinstance(error, BitseamError))
            if session.training:
                self._ended.put(_broken(error, self._party))
        else:
            log.info("%s: session over", channel.peer)


def _broken(error: Exception, party: ServerParty) -> BaseException:
    if not isinstance(error, BitseamError):
        return error
    kind = PeerGoneError if isinstance(error, PeerGoneError) else type(error)
    where = f"after step {party.step} of {party.recipe.train.steps}"
    return kind(f"training stopped {where}: {error}. Checkpoints below {party.recipe.folder}/server are intact")


def _row(report: StepReport) -> dict[str, Any]:
    return {key: value for key, value in asdict(report).items() if key != "step"}
