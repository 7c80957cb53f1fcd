"""Language models of transformers' own classes, a few thousand weights each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import WORDS

SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def made(kind: str, **settings: Any) -> Any:
    """A model of one of transformers' configurations."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**SMALL | settings))


def saved(folder: Path, kind: str, **settings: Any) -> str:
    """The folder of one that is written there."""
    made(kind, **settings).save_pretrained(folder)
    return str(folder)
