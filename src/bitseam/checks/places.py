"""Folders and free space."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from torch import nn

from bitseam.errors import ClaimedError, ConfigError
from bitseam.runs.claim import require_unclaimed
from bitseam.runs.folders import KEPT, whole_checkpoints

_MOMENTS = 2  # of AdamW, each as large as the weights


def checkpoint_bytes(model: nn.Module) -> int:
    """About what one checkpoint of a half takes: what is trained with the optimiser's moments, and the buffers."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return (1 + _MOMENTS) * trained + sum(b.numel() * b.element_size() for b in model.buffers())


def room_for_checkpoints(folder: Path, model: nn.Module) -> str:
    """A line on what checkpoints are still to take and what is free. Raises ConfigError where there is too little room.

    folder: of one side, which may hold some already.
    """
    there = min(len(whole_checkpoints(folder)), KEPT)
    needed = (KEPT + 1 - there) * checkpoint_bytes(model)  # those that are kept, and the one being written
    free = shutil.disk_usage(_nearest(folder)).free
    sizes = f"checkpoints take up to {needed / 1e6:,.1f} MB in {folder}, and {free / 1e6:,.1f} MB are free"
    if free < needed:
        raise ConfigError(f"out: {sizes}: make room there, or name a folder on another disk in `out`")
    return sizes


def state_of(folder: Path, run: str, steps: list[int]) -> str:
    """A line on what a side's folder holds."""
    return f"{folder} holds steps {', '.join(map(str, steps))} of run {run[:8]}" if run else f"{folder} holds no run"


def require_folder(out: Path, side: Literal["client", "server"]) -> str:
    """A line on whether a side's folder is free, which is neither made nor taken. Raises ConfigError where it cannot be
    written."""
    folder = out / side
    there = _nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = f"{there} is not writable" if there.is_dir() else f"{there} is no folder"
        raise ConfigError(f"{folder}: cannot be written: {what}; name another folder in `out`, or make room there")
    try:
        require_unclaimed(folder)
    except ClaimedError as error:
        return f"in use now: {error}"
    return f"{folder} can be written"


def _nearest(folder: Path) -> Path:
    """Itself, or the first above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
