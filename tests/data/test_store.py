"""The feature cache: keyed picture by picture by all that makes its content, exact enough, and never half written."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from conftest import Tiny, make_recipe
from PIL import Image
from test_rows import picture

from bitseam.data import features, store
from bitseam.data.features import LiveFeatures, StoredFeatures, tower_digest
from bitseam.data.inspection import contents_of
from bitseam.data.memory import Memory
from bitseam.data.store import FeatureStore
from bitseam.errors import DataError, NonFiniteError
from bitseam.models.vision.half import VisionHalf, load_vision_half


@pytest.fixture
def half(tiny: Tiny) -> VisionHalf:
    return load_vision_half(make_recipe(tiny).client, 32)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return [picture(tmp_path / f"{i}.png", i) for i in range(3)]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that a tower runs on."""
    seen: list[str] = []
    open_crops = features.open_crops

    def counted(image: Path, crops: int) -> list[Image.Image]:
        seen.append(image.name)
        return open_crops(image, crops)

    monkeypatch.setattr(features, "open_crops", counted)
    return seen


def stored(half: VisionHalf, images: Sequence[Path], cache: Path) -> StoredFeatures:
    return StoredFeatures(half, contents_of(images, Memory(cache / "checked.sqlite")), cache / "features")


def test_stored_features_are_the_live_ones(half: VisionHalf, images: list[Path], tmp_path: Path) -> None:
    live = LiveFeatures(half).of(images[1:])
    kept = stored(half, images, tmp_path / "cache").of(images[1:])
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, live, rtol=2e-3, atol=2e-3)  # float16 on the disk


def test_D8_only_pictures_that_are_new_are_computed(
    half: VisionHalf, images: list[Path], tmp_path: Path, computed: list[str]
) -> None:
    cache = tmp_path / "cache"
    before = stored(half, images[:2], cache).of(images[:2])
    assert computed == ["0.png", "1.png"]
    stored(half, images, cache)  # one more
    assert computed[2:] == ["2.png"]
    assert torch.equal(stored(half, images[1:2], cache).of(images[1:2]), before[1:])  # one fewer
    moved = shutil.copy(images[0], tmp_path / "elsewhere.png")
    assert torch.equal(stored(half, [moved], cache).of([moved]), before[:1])  # known by what is in it
    assert len(computed) == 3
    assert len(list((cache / "features").iterdir())) == 1


def test_D8_another_picture_under_the_old_name_size_and_time(
    half: VisionHalf, tmp_path: Path, computed: list[str]
) -> None:
    path = tmp_path / "a.bmp"  # all of one size
    before = stored(half, [picture(path, 1)], tmp_path / "cache").of([path])
    times = path.stat()
    time.sleep(0.02)  # longer than the file system's clock ticks
    picture(path, 2)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    after = stored(half, [path], tmp_path / "cache").of([path])
    assert computed == ["a.bmp", "a.bmp"]
    assert not torch.allclose(before, after, atol=1e-2)


def test_D8_a_picture_that_changes_after_it_was_checked_is_not_kept_under_its_old_content(
    half: VisionHalf, images: list[Path], tmp_path: Path
) -> None:
    contents = contents_of(images, Memory(tmp_path / "checked.sqlite"))
    picture(images[1], 77)
    with pytest.raises(DataError, match=r"1\.png: the file was changed after it was checked"):
        StoredFeatures(half, contents, tmp_path / "features")
    assert list((tmp_path / "features").iterdir()) == []


def _weights(half: VisionHalf) -> None:
    with torch.no_grad():
        next(half.tower.parameters()).mul_(1.01)


def _layer(half: VisionHalf) -> None:
    half.tower.hidden_layer = -1


def _norm(half: VisionHalf) -> None:
    half.tower.model.config.layer_norm_eps = 1e-3


def _colours(half: VisionHalf) -> None:
    half.processor.image_mean = [0.1, 0.2, 0.3]


def _size(half: VisionHalf) -> None:
    half.framing["size"] = {"shortest_edge": 60}


def _type(half: VisionHalf) -> None:
    half.tower.bfloat16()


@pytest.mark.parametrize("change", [_weights, _layer, _norm, _colours, _size, _type])
def test_D8_another_tower_has_other_features(tiny: Tiny, half: VisionHalf, change) -> None:
    again = load_vision_half(make_recipe(tiny).client, 32)
    assert tower_digest(again) == tower_digest(half)  # the connector, of random weights, is no part of it
    change(again)
    assert tower_digest(again) != tower_digest(half)


def test_D8_another_checkpoint_under_the_same_name(tiny: Tiny, tmp_path: Path, images: list[Path]) -> None:
    name = str(shutil.copytree(tiny.vision, tmp_path / "vision"))
    recipe = make_recipe(tiny, client__checkpoint=name)
    before = stored(load_vision_half(recipe.client, 32), images, tmp_path / "cache").of(images)
    half = load_vision_half(recipe.client, 32)
    with torch.no_grad():
        half.tower.model.layernorm.weight.mul_(2)
    half.tower.model.save_pretrained(name)
    after = stored(load_vision_half(recipe.client, 32), images, tmp_path / "cache").of(images)
    assert not torch.allclose(before, after, atol=0.1)


@pytest.mark.parametrize("scale", [2.8e5, 7e4, 1e-6, 1e-30, 1e30])
def test_D8_values_that_float16_cannot_hold_are_kept_wider(tmp_path: Path, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 6, generator=generator)
    values[1] *= scale  # of one picture alone
    cache = FeatureStore(tmp_path / "tower", (4, 6))
    names = [bytes([i]) for i in range(3)]
    cache.fill(
        {name: Path(str(i)) for i, name in enumerate(names)}, lambda new: values[[int(str(p)) for p in new.values()]]
    )
    for reader in (cache, FeatureStore(tmp_path / "tower", (4, 6))):
        reader.fill({name: Path() for name in names}, lambda new: pytest.fail("nothing is missing"))
        got = torch.from_numpy(reader.read(names))
        assert torch.equal(got[1], values[1])
        torch.testing.assert_close(got, values, rtol=1e-3, atol=1e-6)
    assert (tmp_path / "tower" / "float16").stat().st_size == 2 * 4 * 6 * 2


def test_features_that_are_not_finite_are_named(tmp_path: Path) -> None:
    values = torch.zeros(2, 4, 6)
    values[1, 2, 3] = torch.nan
    pictures = {bytes([i]): Path(f"{i}.png") for i in range(2)}
    with pytest.raises(NonFiniteError, match=r"1\.png: .* not finite"):
        FeatureStore(tmp_path / "tower", (4, 6)).fill(pictures, lambda new: values[: len(new)])
    assert not (tmp_path / "tower").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KB, as root alone can make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_O3_a_full_disk_is_a_named_error_and_leaves_nothing(
    half: VisionHalf, images: list[Path], small_disk: Path
) -> None:
    with pytest.raises(DataError, match=r"BITSEAM_CACHE.*data\.cache_features = false"):
        stored(half, images, small_disk)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_O3_what_does_not_fit_is_refused_before_it_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def compute(new: Mapping[bytes, Path]) -> torch.Tensor:
        asked.append(len(new))
        return torch.ones(len(new), 4, 600)

    pictures = {i.to_bytes(2, "big"): Path() for i in range(1000)}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=4_000_000))
    with pytest.raises(DataError, match=r"features of 1,000 pictures: 4\.8 MB in .*tower; 4\.0 MB free: make room"):
        FeatureStore(tmp_path / "tower", (4, 600)).fill(pictures, compute)
    assert asked == [32]  # the first batch tells how many bytes a picture takes
    assert not (tmp_path / "tower").exists()
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: usage._replace(free=80_000_000_000))
    caplog.set_level(logging.INFO)
    FeatureStore(tmp_path / "tower", (4, 600)).fill(pictures, compute)
    assert "features of 1,000 pictures: 4.8 MB in" in caplog.text
    assert "80.0 GB free" in caplog.text


def test_O3_a_limit_that_is_met_while_writing(tmp_path: Path) -> None:
    code = f"""
import resource, torch
from pathlib import Path
from bitseam.data.store import FeatureStore
from bitseam.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
pictures = {{i.to_bytes(2, "big"): Path() for i in range(1000)}}
try:
    cache = FeatureStore(Path({str(tmp_path)!r}) / "tower", (4, 600))
    cache.fill(pictures, lambda new: torch.ones(len(new), 4, 600))
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the feature cache cannot be used: [Errno 27] File too large" in done.stdout
    assert not (tmp_path / "tower").exists()


def test_a_killed_process_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    code = f"""
import os, signal, torch
from pathlib import Path
from bitseam.data import store
store._SECONDS = 0  # the index is written after each picture
pictures = {{i.to_bytes(2, "big"): Path(str(i)) for i in range(100)}}
def compute(new):
    if Path("64") in new.values():
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.stack([torch.full((4, 6), float(str(path))) for path in new.values()])
store.FeatureStore(Path({str(tmp_path)!r}) / "tower", (4, 6)).fill(pictures, compute)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with sqlite3.connect(tmp_path / "tower" / "index") as index:
        assert index.execute("SELECT COUNT(*) FROM pictures").fetchone() == (64,)
    asked: list[int] = []

    def compute(new: Mapping[bytes, Path]) -> torch.Tensor:
        asked.extend(int(str(path)) for path in new.values())
        return torch.stack([torch.full((4, 6), float(str(path))) for path in new.values()])

    names = [i.to_bytes(2, "big") for i in range(100)]
    cache = FeatureStore(tmp_path / "tower", (4, 6))
    cache.fill({name: Path(str(i)) for i, name in enumerate(names)}, compute)
    assert asked == list(range(64, 100))
    assert cache.read(names)[:, 0, 0].tolist() == list(range(100))
    assert (tmp_path / "tower" / "float16").stat().st_size == 100 * 4 * 6 * 2


def test_several_processes_use_one_cache_at_once(tmp_path: Path) -> None:
    code = f"""
import sys, time, torch
from pathlib import Path
from bitseam.data.store import FeatureStore
def compute(new):
    time.sleep(.05)
    return torch.stack([torch.full((4, 6), float(str(path))) for path in new.values()])
first = int(sys.argv[1])
names = [i.to_bytes(2, "big") for i in range(first, first + 150)]
cache = FeatureStore(Path({str(tmp_path)!r}) / "tower", (4, 6))
cache.fill({{name: Path(str(first + i)) for i, name in enumerate(names)}}, compute)
assert cache.read(names)[:, 0, 0].tolist() == list(range(first, first + 150))
"""
    commands = [[sys.executable, "-c", code, str(first)] for first in (0, 100)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        told = process.communicate()[1]
        assert process.returncode == 0, told
    with sqlite3.connect(tmp_path / "tower" / "index") as index:
        assert index.execute("SELECT COUNT(*), MAX(record) FROM pictures").fetchone() == (250, 249)
