"""Folders and free space."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from torch import nn

from bitseam.errors import ClaimedError, ConfigError
from bitseam.parties.claim import claimed
from bitseam.parties.folders import KEPT

_MOMENTS = 2  # of AdamW, each as large as the weights


def checkpoint_bytes(model: nn.Module) -> int:
    """About what one checkpoint of a half takes: what is trained with the optimiser's moments, and the buffers."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return (1 + _MOMENTS) * trained + sum(b.numel() * b.element_size() for b in model.buffers())


def room_for_checkpoints(folder: Path, model: nn.Module) -> str:
    """A line on what checkpoints take and what is free. Raises ConfigError where the disk has no room for them."""
    needed = (KEPT + 1) * checkpoint_bytes(model)  # those that are kept, and the one being written
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    sizes = f"checkpoints take up to {needed / 1e6:,.1f} MB in {folder}, and {free / 1e6:,.1f} MB are free"
    if free < needed:
        raise ConfigError(f"out: {sizes}: make room there, or name a folder on another disk in `out`")
    return sizes


def state_of(folder: Path, run: str, steps: list[int]) -> str:
    """A line on what a side's folder holds."""
    return f"{folder} holds steps {', '.join(map(str, steps))} of run {run[:8]}" if run else f"{folder} holds no run"


def require_folder(out: Path, side: Literal["client", "server"]) -> str:
    """A line on whether a side's folder is free. Raises ConfigError where it cannot be written."""
    try:
        with claimed(out, side):
            return f"{out / side} can be written"
    except ClaimedError as error:
        return f"in use now: {error}"
