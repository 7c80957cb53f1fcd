"""One folder a half and step, Hugging Face config + safetensors, written whole or not at all.

    OUT/client/step-000500/  config.json  model.safetensors         connector, quantizers
                             vision.safetensors                     where the tower was tuned
                             training.safetensors                   to go on training: optimiser, random state, ...
                             ledger.json                            what crossed until then
    OUT/server/step-000500/  config.json  model.safetensors         level projections
                             language/ | adapter/                   a Hugging Face folder, or a peft adapter
                             training.safetensors

What was not tuned is named in the recipe inside config.json and read from where it came from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitseam import config
from bitseam.errors import ConfigError, ModelError, first_sentence
from bitseam.models.client import ClientModel
from bitseam.models.language.half import load_language_half
from bitseam.models.language.loading import load_token_embedding
from bitseam.models.proof import prove
from bitseam.models.server import ServerModel
from bitseam.models.vision.half import load_vision_half
from bitseam.models.weights import require_readable
from bitseam.runs.folders import name_of, whole_checkpoints, written

FRESH = "fresh"
_METADATA = {"format": "pt"}
_ELSEWHERE = ("vision.tower.", "language.model.", "embedding.")  # what model.safetensors does not hold
# What may change between a run and its continuation.
_FREE = (
    "name",
    "network",
    "data.test",
    "data.bad_rows",
    "data.cache_features",
    "data.workers",
    "text.max_answer_tokens",
    "out",
    "threads",
    "device",
)

Side = Literal["client", "server"]
Locate = Callable[[str], str]  # a checkpoint's name in a recipe -> where it lies on this machine


@dataclass(frozen=True)
class Identity:
    """Which pair of halves: the run that trained them, and the step."""

    run: str
    step: int

    def __str__(self) -> str:
        return f"{self.run}@{self.step}" if self.step else FRESH


def build_client(recipe: config.Recipe, locate: Locate) -> ClientModel:
    """A fresh client model."""
    settings = replace(recipe.client, checkpoint=locate(recipe.client.checkpoint))
    embedding = None
    if "text" in recipe.streams:
        embedding = load_token_embedding(locate(recipe.server.checkpoint))
    return ClientModel(load_vision_half(settings, recipe.seam.width), recipe, embedding)


def build_server(recipe: config.Recipe, locate: Locate) -> ServerModel:
    """A fresh server model."""
    settings = replace(recipe.server, checkpoint=locate(recipe.server.checkpoint))
    return ServerModel(load_language_half(settings), recipe)


def save_client(
    model: ClientModel,
    recipe: config.Recipe,
    identity: Identity,
    out: Path,
    training: Mapping[str, Tensor] | None = None,
    crossed: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the client's half below `out`; returns its folder.

    training: what else a run goes on from (`bitseam.runs.resume`). crossed: rows of the ledger.
    """
    with _written(out / "client", identity, recipe, training) as folder:
        save_file(_own_state(model), folder / "model.safetensors", _METADATA)
        if recipe.client.tune_vision:
            save_file(model.vision.tower.state_dict(), folder / "vision.safetensors", _METADATA)
        (folder / "ledger.json").write_text(json.dumps(list(crossed)))
    return folder_of(out, "client", identity.step)


def save_server(
    model: ServerModel,
    recipe: config.Recipe,
    identity: Identity,
    out: Path,
    training: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the server's half below `out`; returns its folder. training: as of `save_client`."""
    with _written(out / "server", identity, recipe, training) as folder:
        save_file(_own_state(model), folder / "model.safetensors", _METADATA)
        if recipe.server.tune != "frozen":
            model.language.model.save_pretrained(folder / ("adapter" if recipe.server.tune == "lora" else "language"))
    return folder_of(out, "server", identity.step)


def load_client(
    folder: Path, locate: Locate, streams: Mapping[str, config.Stream] | None = None
) -> tuple[ClientModel, config.Recipe, Identity]:
    """Read what `save_client` wrote. Raises ModelError that names the folder or file.

    streams: instead of those trained with, where the same weights fit: other levels, say.
    """
    recipe, identity = read_config(folder, streams)
    model = build_client(recipe, locate)
    restore_client(model, folder, recipe)
    return model, recipe, identity


def restore_client(model: ClientModel, folder: Path, recipe: config.Recipe) -> None:
    """Put the weights of a checkpoint into a half built by the same recipe. Raises ModelError that names the file."""
    if recipe.client.tune_vision:
        _load_state(model.vision.tower, folder / "vision.safetensors", set(model.vision.tower.state_dict()))
    _load_state(model, folder / "model.safetensors", set(_own_state(model)))


def load_training(folder: Path) -> dict[str, Tensor]:
    """What was saved as `training`. Raises ModelError that names the file."""
    path = folder / "training.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: no run can go on from here: {error}") from error


def load_crossed(folder: Path) -> list[dict[str, Any]]:
    """The rows of the ledger as they stood. Raises ModelError that names the file."""
    path = folder / "ledger.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error


def load_server(
    folder: Path, locate: Locate, streams: Mapping[str, config.Stream] | None = None
) -> tuple[ServerModel, config.Recipe, Identity]:
    """Read what `save_server` wrote. Raises ModelError that names the folder or file.

    streams: instead of those trained with, where the same weights fit: other levels, say.
    """
    recipe, identity = read_config(folder, streams)
    if recipe.server.tune == "full":
        half = load_language_half(replace(recipe.server, checkpoint=str(folder / "language")))
    else:
        frozen = replace(recipe.server, checkpoint=locate(recipe.server.checkpoint), tune="frozen")
        half = load_language_half(frozen)
        if recipe.server.tune == "lora":
            half.model = _with_adapter(half.model, folder / "adapter")
    model = ServerModel(half, recipe)
    _load_state(model, folder / "model.safetensors", set(_own_state(model)))
    return model, recipe, identity


def load_pair(client: Path, server: Path, locate: Locate) -> tuple[ClientModel, ServerModel, config.Recipe, Identity]:
    """Both halves, the server's proven; the recipe is the client's.

    Raises ModelError where they are not of one run and step.
    """
    client_model, recipe, identity = load_client(client, locate)
    server_model, _, other = load_server(server, locate)
    if identity != other:
        raise ModelError(f"{client} is {identity}, {server} is {other}: not two halves of one model")
    server_model.ways = prove(server_model, recipe).ways
    return client_model, server_model, recipe, identity


def read_config(folder: Path, streams: Mapping[str, config.Stream] | None = None) -> tuple[config.Recipe, Identity]:
    """The recipe and identity of a checkpoint. streams: instead of those of its recipe."""
    try:
        raw = json.loads((folder / "config.json").read_text())
        recipe = config.parse_recipe(raw["recipe"], f"{folder}/config.json")
        return replace(recipe, streams=dict(streams or recipe.streams)), Identity(**raw["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: no checkpoint of Bitseam: {error}") from error


def newest(out: Path, side: Side) -> Path:
    """The newest checkpoint of a side below `out`."""
    found = whole_checkpoints(out / side)
    if not found:
        raise ModelError(f"{out / side}: no checkpoint there; train first")
    return found[-1]


def folder_of(out: Path, side: Side, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return out / side / name_of(step)


def held(recipe: config.Recipe, side: Side) -> tuple[str, list[int]]:
    """The run that a side's folder holds, "" for none, and the steps of its checkpoints, oldest first.

    Raises ConfigError, with every difference named, where it is the run of another recipe.
    """
    found = whole_checkpoints(recipe.folder / side)
    if not found:
        return "", []
    theirs, identity = read_config(found[-1])
    before, now = _flat(asdict(theirs)), _flat(asdict(recipe))
    differences = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not f"{key}.".startswith(tuple(f"{free}." for free in _FREE))
    ]
    if differences:
        raise ConfigError(
            f"{recipe.folder / side} holds a run of another recipe: {'; '.join(differences)}. Go on with that recipe, "
            "or name another folder in `out`"
        )
    return identity.run, [read_config(path)[1].step for path in found if read_config(path)[1].run == identity.run]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    if not isinstance(value, dict):
        return {key: list(value) if isinstance(value, tuple) else value}
    return {k: v for name, part in value.items() for k, v in _flat(part, f"{key}.{name}" if key else name).items()}


@contextmanager
def _written(
    side: Path, identity: Identity, recipe: config.Recipe, training: Mapping[str, Tensor] | None
) -> Iterator[Path]:
    """The folder of a checkpoint, in which everything but the weights is written for the caller."""
    with written(side, identity.step) as folder:
        whole = {"model_type": f"bitseam-{side.name}", "identity": asdict(identity), "recipe": asdict(recipe)}
        (folder / "config.json").write_text(json.dumps(whole, indent=2))
        yield folder
        if training is not None:
            save_file({name: value.contiguous() for name, value in training.items()}, folder / "training.safetensors")


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith(_ELSEWHERE)}


def shared_state(model: ClientModel) -> list[Tensor]:
    """What clients of one run may average: every floating-point tensor that is a half's own, statistics among them."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {name: t for name, t in model.state_dict().items() if name in trained or not name.startswith(_ELSEWHERE)}
    return [tensor for tensor in own.values() if tensor.is_floating_point()]


def _with_adapter(language: nn.Module, folder: Path) -> nn.Module:
    """Raises ModelError for an adapter that cannot be read, or that lacks what peft would draw anew."""
    from peft import PeftModel  # slow to import, and needed here alone

    try:
        require_readable(str(folder))
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            kept = set(file.keys())
        model = PeftModel.from_pretrained(language, folder, is_trainable=True)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except Exception as error:  # whatever another's code raises on anyone's files
        raise ModelError(f"{folder}: the adapter cannot be loaded: {first_sentence(error)}") from error
    due = {n.replace(".default", "") for n, parameter in model.named_parameters() if parameter.requires_grad}
    if missing := sorted(due - kept):
        raise ModelError(f"{folder}: {len(missing)} tensors of the adapter are missing ({missing[0]}, ...)")
    return model


def _load_state(model: nn.Module, path: Path, due: set[str]) -> None:
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path}: {first_sentence(error)}") from error
    if unexpected or due & set(missing):
        raise ModelError(f"{path}: missing {sorted(due & set(missing))}, unexpected {sorted(unexpected)}")
