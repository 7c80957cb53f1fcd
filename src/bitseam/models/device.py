"""Which device a half runs on."""

from __future__ import annotations

import torch

from bitseam.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu" or "cuda" -> device. Raises ConfigError where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but PyTorch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
