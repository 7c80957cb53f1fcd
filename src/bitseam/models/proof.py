"""Whether our ways through a language model give what its own forward pass and `generate` do, on random rows.

What differs is run in a plainer way (`bitseam.models.server.Ways`), or refused. It is the model in hand that is tried,
whatever its name: what a model does after its head, windows, states, positions and settings of its own all show here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from bitseam import config
from bitseam.errors import ModelError, first_sentence
from bitseam.models.positions import most_positions
from bitseam.models.server import ServerModel, Ways
from bitseam.models.trial import FAILURES, TOLERANCES, Trial

_DRAWS = 2  # a router or a maximum that hangs on the last bit of one draw's rows does not in the other's
_LENGTHS = ("window", "chunk", "original_max_position")  # in names of settings: lengths from which a model differs


@dataclass(frozen=True)
class Proof:
    """What `prove` found. differences: relative, of the ways taken; others: why plainer ones were taken than could be;
    seconds: that it took."""

    ways: Ways
    differences: Mapping[str, float]
    others: Mapping[str, str]
    seconds: float

    @property
    def packs(self) -> bool:
        return self.ways.rows == "packed"

    @property
    def batches_answers(self) -> bool:
        return self.ways.answers == "together"

    def __str__(self) -> str:
        """One line, for a log."""
        within = ", ".join(f"{name} within {value:.0e}" for name, value in self.differences.items())
        plainer = "".join(f"; {way} would not be: {why}" for way, why in self.others.items())
        return (
            f"language model proven in {self.seconds:.2f} s: {within} of its own; rows {self.ways.rows}, answers "
            f"{self.ways.answers}{plainer}"
        )


def prove(model: ServerModel, recipe: config.Recipe, training: bool = True) -> Proof:
    """Try the model on a few rows, as long as its windows need and the recipe allows; nothing of it is changed.

    training: compare losses and gradients too, not only answers. Raises ModelError that names what differs, and by how
    much, where no way gives what the model's own does.
    """
    began = time.perf_counter()
    base, longest = model.language.base, recipe.seam.max_tokens + recipe.text.max_tokens
    if training:
        model.language.require_plain_loss()
    found = _Found()
    with _undisturbed(model):
        lengths = _lengths(base.config.get_text_config().to_dict())
        reached = sorted({length for length in lengths if 1 < length < longest})
        trials = [Trial(model, reached, draw) for draw in range(_DRAWS)]
        try:
            ways = Ways()
            if reached:
                trials[0].require_memoryless()
            if training:
                every = {
                    f"{rows} rows{', all logits' * head}": Ways(rows, head)
                    for head in (False, True)
                    for rows in ("packed", "padded", "alone")
                }
                ways = found.first(every, trials, Trial.train)
            answers: tuple[Literal["together", "alone", "uncached"], ...] = ("together", "alone", "uncached")
            every = {f"answers {way}": replace(ways, answers=way) for way in answers}
            ways = found.first(every, trials, Trial.answer)
            if trials[0].generate:
                found.others["its own generate"] = trials[0].generate
            most = longest + recipe.text.most_new_tokens  # with what is answered
            ways = replace(ways, positions=most_positions(model.language, most))
            if training:
                model.train()  # dropout is then on: nothing to compare, but some models ask for more in training
                with torch.no_grad():
                    trials[0].loss(ways)
        except (ModelError, *FAILURES) as error:
            name = f"{base.config.model_type}, {type(base).__name__}"
            raise ModelError(f"server.checkpoint ({name}) cannot be split: {first_sentence(error)}") from error
    return Proof(ways, found.differences, found.others, time.perf_counter() - began)


class _Found:
    def __init__(self) -> None:
        self.differences: dict[str, float] = {}
        self.others: dict[str, str] = {}

    def first(
        self, every: Mapping[str, Ways], trials: list[Trial], compare: Callable[[Trial, Ways], dict[str, float]]
    ) -> Ways:
        """The first whose results are the model's own. Raises ModelError where there is none."""
        why = ""
        for name, ways in every.items():
            for trial in trials:
                try:
                    found = compare(trial, ways)
                except FAILURES as error:
                    why = first_sentence(error, named=True)
                    break
                what = max(found, key=lambda name: found[name] / TOLERANCES[name])
                if found[what] <= TOLERANCES[what]:
                    self.differences |= found
                    return ways
                why = f"{what} {found[what]:.1e} from its own, relative, where {TOLERANCES[what]:.0e} may be rounding"
            self.others[name] = why
        raise ModelError(f"fed with embeddings it is not what it is with tokens: {why}")


def _lengths(settings: Mapping[str, Any]) -> Iterator[int]:
    """Numbers in a model's settings from which on it treats rows otherwise."""
    if "'rope_type': 'dynamic'" in str(settings.get("rope_parameters")):
        yield settings["max_position_embeddings"]
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _lengths(value)
        elif any(part in str(name) for part in _LENGTHS):
            yield from (one for one in (value if isinstance(value, list) else [value]) if type(one) is int)


@contextmanager
def _undisturbed(model: ServerModel) -> Iterator[None]:
    """In evaluation, with gradients, without TF32; random state and modes are as before when this ends."""
    was = model.training
    cudnn = torch.backends.cudnn.allow_tf32
    with torch.enable_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        model.eval()
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = cudnn
            model.train(was)
