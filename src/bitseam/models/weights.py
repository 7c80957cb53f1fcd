"""Checkpoints read whole: float32, no tensor missing or of another shape, errors of one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bitseam.errors import ModelError, first_sentence

_NAMED = 3  # tensors in an error's line


@dataclass(frozen=True)
class Loaded:
    """model: in float32. missing: parameters and buffers of the model that the checkpoint does not hold; unexpected:
    tensors of the checkpoint that have no place in the model."""

    model: Any
    missing: frozenset[str]
    unexpected: frozenset[str] = frozenset()


def load_float32(kind: Any, checkpoint: str, **more: Any) -> Loaded:
    """`kind.from_pretrained`, in float32 whatever the file's type: in half precision, small steps are lost.

    more: further arguments of it. Raises ModelError where a file is cut off, or a tensor has another shape than the
    configuration says.
    """
    require_readable(checkpoint)
    model, found = kind.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=False,  # or somebody at a terminal is asked whether to run it
        **more,
    )
    other = [f"{name} is {list(theirs)} and not {list(ours)}" for name, theirs, ours in found["mismatched_keys"]]
    if other:
        raise ModelError(f"its weights do not fit its config.json: {some(other)}")
    return Loaded(model, frozenset(found["missing_keys"]), frozenset(found["unexpected_keys"]))


@contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Have what is raised while a checkpoint is read be a ModelError of one line that begins with `where`."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    except Exception as error:  # whatever another's code raises on anyone's files
        raise ModelError(f"{where} cannot be loaded: {first_sentence(error)}") from error


def require_readable(checkpoint: str) -> None:
    """Raises ModelError that names a file of tensors which is cut off or none."""
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            reason = f"it is cut off, or was never fetched whole ({first_sentence(error)})"
            raise ModelError(f"its file {path.name} cannot be loaded: {reason}") from error


def some(names: Iterable[str]) -> str:
    """The first few, in order, and how many more."""
    listed = sorted(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
