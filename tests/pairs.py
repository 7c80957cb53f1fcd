"""A client and its server in one process, over the in-memory transport: the same code as over gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bitseam import config
from bitseam.errors import BitseamError
from bitseam.runs.checkpoint import build_client, held
from bitseam.sessions.client import ClientSession
from bitseam.sessions.party import ServerParty
from bitseam.sessions.server import ServerSession
from bitseam.sessions.terms import terms
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter
from bitseam.train import Callback, Training
from bitseam.train.loop import Batches
from bitseam.transport import Channel, memory_pair

IDENTITY = {"streams__image": {"quantizer": "none", "codec": "fp32"}, "streams__image__gradient__id": "fp32"}
ENTROPY = {"streams__image__codec": {"id": "entropy-uniform", "groups": 4}}
RATE = {"quantizer": "rate-fsq", "codec": {"id": "entropy-uniform", "groups": 16}, "levels": 15, "clip": 7.0}
QUESTIONS = ["is this a cat ?", "dog ?", "what is there ?", "this a dog ?"]
ANSWERS = ["yes", "a red cat", "no", "blue"]


def alike(sequences: int, words: int, answers: bool, image_at: int = 0) -> TextBatch:
    """Sequences of one token again and again, each about an image of its own; the last of each is its answer."""
    count = sequences * words
    return TextBatch(
        ids=torch.full((count,), 5),
        lengths=torch.full((sequences,), words),
        image_at=torch.full((sequences,), image_at),
        image=torch.arange(sequences),
        answers=(torch.arange(count) % words >= words - 1) & answers,
    )


@dataclass
class Pair:
    client: ClientSession
    party: ServerParty
    sessions: list[ServerSession]
    failures: list[BaseException]


@contextmanager
def pair(recipe: config.Recipe, **told: str) -> Iterator[Pair]:
    """A client session with its server in threads, one a connection; `told` overrides terms that the client tells."""
    party = ServerParty(recipe, str)
    model = build_client(recipe, str)
    sessions: list[ServerSession] = []
    failures: list[BaseException] = []
    threads: list[threading.Thread] = []

    def serve(session: ServerSession, channel: Channel) -> None:
        try:
            session.run()
        except BitseamError as error:
            failures.append(error)
        finally:
            channel.close()

    def dial() -> Channel:
        left, right = memory_pair()
        sessions.append(ServerSession(party, right))
        threads.append(threading.Thread(target=serve, args=(sessions[-1], right)))
        threads[-1].start()
        return left

    prompter = Prompter(recipe.text)
    agreed = terms(recipe, model.senders(), prompter, None) | told
    try:
        with ClientSession(model, dial, prompter.vocabulary, patience=30) as client:
            client.open({k: v for k, v in agreed.items() if v}, True, partial(held, recipe, "client"))
            yield Pair(client, party, sessions, failures)
    finally:
        for thread in threads:
            thread.join(timeout=30)
            assert not thread.is_alive()


def batches(recipe: config.Recipe, client: ClientSession) -> Callable[[int], tuple[Tensor, TextBatch]]:
    """Two questions a micro-batch, each with an image of its own."""
    prompter = Prompter(recipe.text)
    size = recipe.train.batch

    def draw(number: int) -> tuple[Tensor, TextBatch]:
        pixels = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(number * size // 4))
        pick = [(number * size + i) % 4 for i in range(size)]
        text = prompter.batch([QUESTIONS[i] for i in pick], [ANSWERS[i] for i in pick])
        return client.model.vision.features(pixels[pick]), replace(text, samples=torch.tensor(pick))

    return draw


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def train(session: ClientSession, recipe: config.Recipe, batches: Batches, callbacks: Sequence[Callback] = ()) -> Path:
    """Train to the end of the recipe; returns the client's last checkpoint."""
    return Training(session, recipe, batches).run(callbacks=callbacks)
