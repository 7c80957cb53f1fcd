"""A side's folder of checkpoints, `step-000500` and so on: which there are, and how one more is written.

Names that are not of this form belong to somebody else, a backup or a link of the user's, say: they are neither read
nor removed.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from bitseam.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{6}|[1-9]\d{6,17})", re.ASCII)
_PARTIAL = ".partial-"  # what begins so is being written or removed
KEPT = 2  # the newest may be of a step that the other side does not have yet


def name_of(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:06d}"


def whole_checkpoints(side: Path) -> list[Path]:
    """Folders of the checkpoints below `side`, oldest first; one that was copied half or renamed is told and left out.

    Raises ModelError where there are some, and none of them is whole.
    """
    named = {int(path.name[5:]): path for path in side.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()}
    whole = [path for step, path in sorted(named.items()) if _is_whole(path, step)]
    if named and not whole:
        raise ModelError(f"{side}: no checkpoint there is whole; bring back what is missing, or remove what is left")
    return whole


def writable(folder: Path) -> Path:
    """The folder, made where it is not there. Raises ConfigError where nothing can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{folder}: cannot be written: {reason}; name another folder, or make room there") from error


@contextmanager
def written(side: Path, step: int) -> Iterator[Path]:
    """A folder that takes its name once everything in it is on the disk; older ones then go. Raises ModelError."""
    partial = None
    try:
        side.mkdir(parents=True, exist_ok=True)
        for left in side.glob(f"{_PARTIAL}*"):  # by a process that was killed
            shutil.rmtree(left)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=side))
        yield partial
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        _remove(side / name_of(step))
        os.replace(partial, side / name_of(step))
        _sync(side)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{side}: the checkpoint of step {step} could not be written: {error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    for old in whole_checkpoints(side)[:-KEPT]:
        try:
            _remove(old)
        except OSError as error:  # it is in nobody's way but the disk's
            log.warning("%s: an old checkpoint cannot be removed: %s", old, error)


def _is_whole(folder: Path, step: int) -> bool:
    try:
        found = json.loads((folder / "config.json").read_text())["identity"]["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        _tell_once(f"{folder}: not used, for it is no whole checkpoint: {error}")
        return False
    if found != step:
        _tell_once(f"{folder}: not used, for it is the checkpoint of step {found}")
    return found == step


@functools.cache
def _tell_once(text: str) -> None:
    log.warning("%s", text)


def _remove(folder: Path) -> None:
    """A folder that is only half there, where we are killed at it, must not bear a checkpoint's name."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder.rename(folder.parent / f"{_PARTIAL}{folder.name}"))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
