"""One folder a half and step, Hugging Face config + safetensors, written whole or not at all.

    OUT/client/step-000500/  config.json  model.safetensors         connector, quantizers
                             vision.safetensors                     where the tower was tuned
    OUT/server/step-000500/  config.json  model.safetensors         level projections
                             language/ | adapter/                   a Hugging Face folder, or a peft adapter

What was not tuned is named in the recipe inside config.json and read from where it came from.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitseam import config
from bitseam.errors import ModelError
from bitseam.halves.client import load_client_half
from bitseam.halves.server import load_server_half
from bitseam.parties.models import ClientModel, ServerModel

FRESH = "fresh"
_METADATA = {"format": "pt"}
_ELSEWHERE = ("vision.tower.", "language.model.", "embedding.")  # what model.safetensors does not hold
_KEPT = 2  # the newest may be of a step that the other side does not have yet

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
    if recipe.seam.text == "codes":
        embedding = _token_embedding(Path(locate(recipe.server.checkpoint)))
    return ClientModel(load_client_half(settings, recipe.seam.width), recipe.seam, embedding)


def build_server(recipe: config.Recipe, locate: Locate) -> ServerModel:
    """A fresh server model."""
    settings = replace(recipe.server, checkpoint=locate(recipe.server.checkpoint))
    return ServerModel(load_server_half(settings), recipe.seam)


def save_client(model: ClientModel, recipe: config.Recipe, identity: Identity, out: Path) -> Path:
    """Write the client's half below `out`; returns its folder."""
    with _written(out / "client", identity, recipe) as folder:
        save_file(_own_state(model), folder / "model.safetensors", _METADATA)
        if recipe.client.tune_vision:
            save_file(model.vision.tower.state_dict(), folder / "vision.safetensors", _METADATA)
    return out / "client" / _name(identity.step)


def save_server(model: ServerModel, recipe: config.Recipe, identity: Identity, out: Path) -> Path:
    """Write the server's half below `out`; returns its folder."""
    with _written(out / "server", identity, recipe) as folder:
        save_file(_own_state(model), folder / "model.safetensors", _METADATA)
        if recipe.server.tune != "frozen":
            model.language.model.save_pretrained(folder / ("adapter" if recipe.server.tune == "lora" else "language"))
    return out / "server" / _name(identity.step)


def load_client(
    folder: Path, locate: Locate, seam: config.Seam | None = None
) -> tuple[ClientModel, config.Recipe, Identity]:
    """Read what `save_client` wrote. Raises ModelError that names the folder or file.

    seam: instead of the one trained with, where the same weights fit: other levels, say.
    """
    recipe, identity = read_config(folder)
    recipe = replace(recipe, seam=seam or recipe.seam)
    model = build_client(recipe, locate)
    if recipe.client.tune_vision:
        _load_state(model.vision.tower, folder / "vision.safetensors", set(model.vision.tower.state_dict()))
    _load_state(model, folder / "model.safetensors", set(_own_state(model)))
    return model, recipe, identity


def load_server(
    folder: Path, locate: Locate, seam: config.Seam | None = None
) -> tuple[ServerModel, config.Recipe, Identity]:
    """Read what `save_server` wrote. Raises ModelError that names the folder or file.

    seam: instead of the one trained with, where the same weights fit: other levels, say.
    """
    recipe, identity = read_config(folder)
    recipe = replace(recipe, seam=seam or recipe.seam)
    if recipe.server.tune == "full":
        half = load_server_half(replace(recipe.server, checkpoint=str(folder / "language")))
    else:
        frozen = replace(recipe.server, checkpoint=locate(recipe.server.checkpoint), tune="frozen")
        half = load_server_half(frozen)
        if recipe.server.tune == "lora":
            from peft import PeftModel  # slow to import, and needed here alone

            half.model = PeftModel.from_pretrained(half.model, folder / "adapter", is_trainable=True)
    model = ServerModel(half, recipe.seam)
    _load_state(model, folder / "model.safetensors", set(_own_state(model)))
    return model, recipe, identity


def load_pair(client: Path, server: Path, locate: Locate) -> tuple[ClientModel, ServerModel, config.Recipe, Identity]:
    """Both halves; the recipe is the client's. Raises ModelError where they are not of one run and step."""
    client_model, recipe, identity = load_client(client, locate)
    server_model, _, other = load_server(server, locate)
    if identity != other:
        raise ModelError(f"{client} is {identity}, {server} is {other}: not two halves of one model")
    return client_model, server_model, recipe, identity


def read_config(folder: Path) -> tuple[config.Recipe, Identity]:
    """The recipe and identity of a checkpoint."""
    try:
        raw = json.loads((folder / "config.json").read_text())
        return config.parse_recipe(raw["recipe"], f"{folder}/config.json"), Identity(**raw["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: no checkpoint of Bitseam: {error}") from error


def newest(out: Path, side: Literal["client", "server"]) -> Path:
    """The newest checkpoint of a side below `out`."""
    found = _checkpoints(out / side)
    if not found:
        raise ModelError(f"{out / side}: no checkpoint there; train first")
    return found[-1]


def _checkpoints(side: Path) -> list[Path]:
    """Oldest first."""
    return sorted(side.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))


def _name(step: int) -> str:
    return f"step-{step:06d}"


@contextmanager
def _written(side: Path, identity: Identity, recipe: config.Recipe) -> Iterator[Path]:
    """A folder that takes its name once everything in it is on the disk; older ones then go."""
    side.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=side))
    try:
        whole = {"model_type": f"bitseam-{side.name}", "identity": asdict(identity), "recipe": asdict(recipe)}
        (partial / "config.json").write_text(json.dumps(whole, indent=2))
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        final = side / _name(identity.step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        _sync(side)
    except OSError as error:
        raise ModelError(f"{side}: the checkpoint of step {identity.step} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _checkpoints(side)[:-_KEPT]:
        shutil.rmtree(old)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith(_ELSEWHERE)}


def _load_state(model: nn.Module, path: Path, due: set[str]) -> None:
    try:
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path}: {error}") from error
    if unexpected or due & set(missing):
        raise ModelError(f"{path}: missing {sorted(due & set(missing))}, unexpected {sorted(unexpected)}")


def _token_embedding(checkpoint: Path) -> Tensor:
    """The one tensor of the language model that the client reads, where prompts cross as codes."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                if key.endswith("embed_tokens.weight"):
                    return file.get_tensor(key).float()
    raise ModelError(f"{checkpoint}: no embed_tokens.weight in its safetensors files; seam.text = 'codes' needs it")
