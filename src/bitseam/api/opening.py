"""The client's part of a run, checked and connected to its server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bitseam import config
from bitseam.api.recipes import locate
from bitseam.checks.client import ClientSide, Purpose, ready_client
from bitseam.data.kept import keep_rows
from bitseam.data.rows import listed
from bitseam.data.survey import Survey
from bitseam.errors import ConfigError
from bitseam.runs.checkpoint import held, newest
from bitseam.runs.claim import claimed
from bitseam.sessions.client import ClientSession
from bitseam.sessions.terms import terms
from bitseam.transport import connect

log = logging.getLogger(__name__)

Opened = tuple[ClientSide, ClientSession]


@contextmanager
def opened_to_train(recipe: config.Recipe) -> Iterator[Opened]:
    """A fresh half, for a training that puts a checkpoint's weights into it; the folder is ours meanwhile."""
    with claimed(recipe.folder, "client"):
        side = ready_client(recipe, locate, "train")
        found = _told(side.rows)
        keep_rows(recipe.folder / "client", found.train, found.contents, found.bad, side.begun)
        with open_session(recipe, side, training=True) as session:
            yield side, session


@contextmanager
def opened_to_ask(recipe: config.Recipe, purpose: Purpose, checkpoint: Path | None) -> Iterator[Opened]:
    """A trained half: `checkpoint`, or the newest of the recipe's run."""
    if purpose == "evaluate":
        require_questions(recipe.data.test)
    side = ready_client(recipe, locate, purpose, checkpoint or newest(recipe.folder, "client"))
    _told(side.rows)
    with open_session(recipe, side, training=False) as session:
        yield side, session


@contextmanager
def open_session(recipe: config.Recipe, side: ClientSide, training: bool) -> Iterator[ClientSession]:
    """Connect, and shake hands."""
    network, prompter = recipe.network, side.prompter
    exposed = network.plaintext_that_anyone_can_read_and_change
    dial = partial(connect, network.address, side.tls, network.keepalive, exposed)
    autocast = recipe.train.autocast
    with ClientSession(side.model, dial, prompter.vocabulary, autocast, network.patience) as session:
        weights = None if training else str(side.identity)
        session.open(terms(recipe, session.streams, prompter, weights), training, partial(held, recipe, "client"))
        yield session


def require_questions(test: object) -> None:
    """Raise ConfigError where there is no test file, or no row of one."""
    if not test:
        raise ConfigError("data.test is empty: name a file of questions to evaluate on")


def _told(found: Survey) -> Survey:
    """The same, after a word on what is left out."""
    if found.bad:
        log.warning("%s rows are left out:", f"{len(found.bad):,}")
        for line in listed(found.bad).split("\n"):
            log.warning("%s", line)
    return found
