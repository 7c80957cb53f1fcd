"""What can be known of the client's side before a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from bitseam import config
from bitseam.checks.findings import Checks
from bitseam.checks.network import own_certificates, valid_until
from bitseam.checks.places import room_for_checkpoints, state_of
from bitseam.data.assets import cache_folder, require_cache
from bitseam.data.rows import listed
from bitseam.data.survey import Survey, survey
from bitseam.errors import ConfigError
from bitseam.evals import answer_room
from bitseam.models.client import ClientModel
from bitseam.models.device import choose_device
from bitseam.runs.checkpoint import Identity, Locate, build_client, held, load_client
from bitseam.text.prompts import Prompter
from bitseam.transport import Tls

Purpose = Literal["train", "evaluate", "ask"]


@dataclass(frozen=True)
class ClientSide:
    """The client's part of a run as its checks have put it together.

    begun: whether the recipe's folder holds a run to go on with. identity: which pair of halves the model is of.
    """

    begun: bool
    tls: Tls | None
    prompter: Prompter
    rows: Survey
    model: ClientModel
    identity: Identity


def ready_client(recipe: config.Recipe, locate: Locate, purpose: Purpose, checkpoint: Path | None = None) -> ClientSide:
    """The client's part, ready to connect. Raises all that is wrong with it, as `Checks.require` does."""
    checks = Checks()
    side = check_client(recipe, locate, checks, purpose, checkpoint)
    checks.require()
    assert side is not None
    return side


def check_client(
    recipe: config.Recipe, locate: Locate, checks: Checks, purpose: Purpose = "train", checkpoint: Path | None = None
) -> ClientSide | None:
    """Look at the client's folder, certificates, rows, images and vision half, which is loaded and proves itself.

    checkpoint: the folder of a trained half, instead of a fresh one. None where something is wrong.
    """
    folder = recipe.folder / "client"
    run = checks.make("run", lambda: held(recipe, "client"), lambda run: state_of(folder, *run))
    tls = checks.make("certificates", lambda: (own_certificates(recipe.network, "client"),), lambda t: valid_until(*t))
    prompter = checks.make("tokenizer", lambda: Prompter(recipe.text, locate), lambda p: f"{p.vocabulary:,} tokens")
    rows: Survey | None = Survey()
    if purpose != "ask":
        rows = checks.make("rows and images", lambda: _rows(recipe, prompter, purpose), lambda f: _counts(f, prompter))
        checks.make("room for answers", lambda: _room(recipe, prompter, rows), str, [prompter, rows])
    if purpose != "ask" and stores_features(recipe):
        checks.make("feature cache", lambda: require_cache("features"), lambda _: str(cache_folder() / "features"))
    half = checks.make("vision half", lambda: _half(recipe, locate, checkpoint), lambda half: _size(half[0]))
    if purpose == "train":
        checks.make("free space", lambda: _space(recipe, half), str, [half])
    if run is None or tls is None or prompter is None or rows is None or half is None:
        return None
    return ClientSide(bool(run[0]), tls[0], prompter, rows, *half)


def stores_features(recipe: config.Recipe) -> bool:
    """Whether features of the recipe's images are computed once and kept on the client's disk."""
    return recipe.data.cache_features and not recipe.client.tune_vision


def _rows(recipe: config.Recipe, prompter: Prompter | None, purpose: Purpose) -> Survey:
    found = survey(recipe, prompter, training=purpose == "train")
    found.settle(recipe.data.bad_rows)
    return found


def _room(recipe: config.Recipe, prompter: Prompter | None, rows: Survey | None) -> str:
    assert prompter is not None
    assert rows is not None
    return f"{answer_room(prompter, rows.test, recipe.text)} tokens" if rows.test else "nothing is asked"


def _space(recipe: config.Recipe, half: tuple[ClientModel, Identity] | None) -> str:
    assert half is not None
    return room_for_checkpoints(recipe.folder / "client", half[0])


def _counts(found: Survey, prompter: Prompter | None) -> str:
    told = f"{len(found.train):,} rows to train on, {len(found.test):,} to test, {len(found.contents):,} images"
    if prompter is None:
        told += "; their lengths are not measured without a tokenizer"
    return f"{told}; {len(found.bad):,} rows are left out:\n{listed(found.bad)}" if found.bad else told


def _half(recipe: config.Recipe, locate: Locate, checkpoint: Path | None) -> tuple[ClientModel, Identity]:
    torch.manual_seed(recipe.seed)  # a fresh connector's weights are the run's, whatever was looked at before
    if checkpoint is None:
        model, identity = build_client(recipe, locate), Identity("", 0)
    else:
        model, trained, identity = load_client(checkpoint, locate, recipe.streams)
        if trained.client.crops != recipe.client.crops:
            raise ConfigError(f"client.crops is {recipe.client.crops}, but {checkpoint} has {trained.client.crops}")
    if model.vision.tokens > recipe.seam.max_tokens:
        raise ConfigError(
            f"an image has {model.vision.tokens} tokens, and seam.max_tokens is {recipe.seam.max_tokens}: raise that "
            "on both sides, merge more tokens into one (client.merge), or take fewer client.crops or a smaller "
            "client.image_size"
        )
    return model.to(choose_device(recipe.device)), identity


def _size(model: ClientModel) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"{count / 1e6:,.1f} M parameters, {model.vision.tokens} tokens an image"
