"""Checkpoints read whole: float32, no tensor missing or of another shape, errors of one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from bitseam.errors import ModelError

_NAMED = 8  # tensors in an error's line


@dataclass(frozen=True)
class Loaded:
    """model: in float32. missing: parameters and buffers of the model that the checkpoint does not hold."""

    model: Any
    missing: frozenset[str]


def load_float32(kind: Any, checkpoint: str) -> Loaded:
    """`kind.from_pretrained`, in float32 whatever the file's type: in half precision, small steps are lost.

    Raises ModelError where a tensor has another shape than the configuration says.
    """
    model, found = kind.from_pretrained(
        checkpoint, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    other = [f"{name} is {list(theirs)} and not {list(ours)}" for name, theirs, ours in found["mismatched_keys"]]
    if other:
        raise ModelError(f"its weights do not fit its config.json: {some(other)}")
    return Loaded(model, frozenset(found["missing_keys"]))


def some(names: Iterable[str]) -> str:
    """The first few, in order, and how many more."""
    listed = sorted(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more


def first_sentence(error: BaseException) -> str:
    """Of a message that may go on for thousands of characters; the error's class where it says nothing."""
    text = " ".join(str(error).split())
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0].rstrip(".:; ")
    return (sentence[:297] + "..." if len(sentence) > 300 else sentence) or type(error).__name__
