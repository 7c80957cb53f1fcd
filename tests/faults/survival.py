"""Runs that are killed, or whose link breaks, and must end with the weights of one that was left alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pair import SIDES, Pair, Side, until
from proxy import Fault, Proxy

STEPS = 60
# Random state matters (dropout), tables of entropy codes are renewed, and a step has two micro-batches.
OPTIONS = tuple(
    word
    for setting in (
        f"train.steps={STEPS}",
        "client.merge=1",
        "train.batch=8",
        "train.accumulate=2",
        "train.checkpoint_every=5",
        "train.weight_decay=0.01",
        "server.tune=lora",
        "server.lora.rank=4",
        "server.lora.dropout=0.2",
        "streams.image.codec.id=entropy-uniform",
        "streams.image.codec.groups=4",
        "streams.image.gradient.id=entropy-stochastic",
    )
    for word in ("--set", setting)
)
LINK = ("--set", "network.keepalive=0.3")  # a peer that is silent is given up after 1.2 seconds
GAP = 7000  # bytes between faults, about: a step of these runs has some 3,000 up, a connection made 4,000
LIMIT = 120.0  # seconds without an end after which a run has failed

Moment = Literal[
    "start",  # so long after the last start of a process
    "step",  # so long after the client has logged a step
    "writing",  # so long after a side has begun to write a checkpoint
    "written",  # so long after a side's checkpoint has its name
]


class RunFailedError(Exception):
    """A run did not end as it should."""


@dataclass(frozen=True)
class Kill:
    """step: that the client must have come to before the moment counts, "start" aside. side: whose checkpoint."""

    victims: tuple[Side, ...]
    moment: Moment
    step: int
    side: Side
    seconds: float

    def __str__(self) -> str:
        when = {
            "start": "after a start",
            "step": f"after step {self.step}",
            "writing": f"after the {self.side} had begun to write a checkpoint",
            "written": f"after the {self.side} had written a checkpoint",
        }[self.moment]
        return f"{' and '.join(self.victims)} {self.seconds:.3f} s {when}"


def draw_kills(rng: random.Random, count: int) -> list[Kill]:
    """Kills of one run, over its whole length; every second one about a checkpoint, where most could go wrong."""
    kills = []
    for step in sorted(rng.randint(0, STEPS) for _ in range(count)):
        moment = rng.choice(get_args(Moment))
        seconds = rng.uniform(0, 2.5) if moment == "start" else rng.choice((0.0, rng.uniform(0, 0.03)))
        kills.append(Kill(rng.choice([("client",), ("server",), SIDES]), moment, step, rng.choice(SIDES), seconds))
    return kills


@dataclass
class Survival:
    """What a run went through. failure: why it did not end with the right weights; empty where it did."""

    troubles: list[str] = field(default_factory=list)
    failure: str = ""
    seconds: float = 0.0


def undisturbed(folder: Path, *options: str) -> dict[str, bytes]:
    """Train; returns the files of tensors of both halves. Raises RunFailedError."""
    with Pair(folder, *OPTIONS, *options) as pair:
        for side in ("server", "client"):
            pair.start(side)
        return _end(pair)


def killed(folder: Path, kills: Iterable[Kill], right: dict[str, bytes]) -> Survival:
    """Train, killing and starting again as told; kills that the run's end forestalls are left out."""
    rng = random.Random(0)

    def trouble(pair: Pair, survived: Survival) -> dict[str, bytes]:
        pair.start("server")
        pair.start("client")
        for kill in kills:
            if not _await(pair, kill):
                break
            for victim in kill.victims:
                pair.kill(victim)
            survived.troubles.append(f"{kill}, the client at step {pair.step()}")
            time.sleep(rng.uniform(0, 0.2))
            for victim in kill.victims:
                pair.start(victim)
        return _end(pair)

    return _survive(Pair(folder, *OPTIONS), trouble, right)


def through_proxy(folder: Path, faults: list[Fault], right: dict[str, bytes], *options: str) -> Survival:
    """Train over a link with these faults; those that the run's end forestalls are left out."""
    server = next(line for line in (folder / "tiny.toml").read_text().splitlines() if line.startswith("address"))
    with Proxy(server.split('"')[1], faults) as proxy:

        def trouble(pair: Pair, survived: Survival) -> dict[str, bytes]:
            pair.start("server")
            pair.start("client")
            try:
                return _end(pair)
            finally:
                survived.troubles += [f"{fault.kind} {fault.direction}" for fault in proxy.fired]

        own: dict[Side, tuple[str, ...]] = {"client": ("--set", f"network.address={proxy.address}")}
        return _survive(Pair(folder, *OPTIONS, *options, own=own), trouble, right)


def _survive(pair: Pair, trouble: Callable[[Pair, Survival], dict[str, bytes]], right: dict[str, bytes]) -> Survival:
    survived, start = Survival(), time.monotonic()
    try:
        with pair:
            weights = trouble(pair, survived)
        wrong = sorted(name for name in right.keys() | weights.keys() if right.get(name) != weights.get(name))
        survived.failure = f"not bit-identical: {', '.join(wrong)}" if wrong else ""
    except RunFailedError as error:
        survived.failure = str(error)
    survived.seconds = time.monotonic() - start
    return survived


def _await(pair: Pair, kill: Kill) -> bool:
    """Until the kill's moment; whether it came before the run's end."""
    run = pair.folder / "run" / kill.side
    seen: set[str] | None = None

    def here() -> bool:
        nonlocal seen
        if kill.moment == "start":
            return True
        if seen is None:
            seen = _listed(run) if pair.step() >= kill.step else None
            return kill.moment == "step" and seen is not None
        prefix = ".partial-" if kill.moment == "writing" else "step-"
        return any(name.startswith(prefix) for name in _listed(run) - seen)

    if not until(lambda: here() or pair.status("client") is not None, LIMIT, pause=0.001):
        raise RunFailedError(f"no end after {LIMIT:g} s{_outputs(pair)}")
    until(lambda: pair.status("client") is not None, kill.seconds, pause=0.001)
    return pair.status("client") is None


def _end(pair: Pair) -> dict[str, bytes]:
    """Let the client come to its end, and have the server stop; returns what they wrote."""
    if pair.join("client", LIMIT) != 0:
        raise RunFailedError(f"the client ended with status {pair.status('client')}{_outputs(pair)}")
    if pair.status("server") is not None:
        raise RunFailedError(f"the server ended by itself with status {pair.status('server')}{_outputs(pair)}")
    pair.terminate("server")
    if pair.join("server", LIMIT) != 0:
        raise RunFailedError(f"the server ended with status {pair.status('server')}{_outputs(pair)}")
    return pair.weights()


def _outputs(pair: Pair) -> str:
    return "".join(f"\n  {side}: ... {pair.output(side)[-1500:]}" for side in SIDES)


def _listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
