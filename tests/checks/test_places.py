"""Free space: what a run is still to write is compared with what is free."""

from __future__ import annotations

import json
from collections import namedtuple
from pathlib import Path

import pytest
from torch import nn

from bitseam.checks.places import checkpoint_bytes, room_for_checkpoints
from bitseam.errors import ConfigError

MODEL = nn.Linear(10, 10)  # 440 bytes of float32, three times with the moments
Usage = namedtuple("Usage", "total used free")


def test_a_checkpoint_has_the_weights_and_two_moments() -> None:
    assert checkpoint_bytes(MODEL) == 3 * 110 * 4
    assert checkpoint_bytes(nn.Linear(10, 10).requires_grad_(False)) == 0


@pytest.mark.parametrize(("there", "needed"), [(0, 3), (1, 2), (2, 1), (5, 1)])
def test_what_is_there_already_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, needed: int
) -> None:
    for step in range(there):
        (tmp_path / f"step-{step:06d}").mkdir()
        config = json.dumps({"identity": {"step": step}})
        (tmp_path / f"step-{step:06d}" / "config.json").write_text(config)
    free = needed * checkpoint_bytes(MODEL)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, free))
    assert "are free" in room_for_checkpoints(tmp_path, MODEL)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, free - 1))
    with pytest.raises(ConfigError, match="out: checkpoints take up to"):
        room_for_checkpoints(tmp_path, MODEL)
