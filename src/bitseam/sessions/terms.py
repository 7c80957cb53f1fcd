"""What both sides must have alike, as flat text that the handshake compares."""

from __future__ import annotations

from collections.abc import Mapping

from bitseam import config
from bitseam.streams import End, agreed
from bitseam.text.prompts import Prompter


def terms(
    recipe: config.Recipe, streams: Mapping[str, End], prompter: Prompter, weights: str | None = None
) -> dict[str, str]:
    """The terms of a run.

    weights: which pair of halves these are (`bitseam.runs.checkpoint.Identity`), where
    questions are to be answered; None where they are to be trained, which the handshake finds a common step for.
    """
    found = {
        "model.vision": recipe.client.checkpoint,
        "model.language": recipe.server.checkpoint,
        "seam.width": str(recipe.seam.width),
        "text.tokenizer": prompter.fingerprint,
        "text.vocabulary": str(prompter.vocabulary),
        **agreed(streams),
    }
    if weights is not None:
        return found | {"model.weights": weights}
    train = recipe.train
    return found | {
        "train.steps": str(train.steps),
        "train.clients": str(train.clients),
        "train.sharing": train.sharing,
        "train.round": str(train.round),
        "train.accumulate": str(train.accumulate),
        "train.checkpoint_every": str(train.checkpoint_every),
    }
