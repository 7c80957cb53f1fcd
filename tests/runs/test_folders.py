"""Folders of runs: what else people keep there, who else writes there, and where nothing can be written."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Tiny, make_recipe
from disks import Disk

from bitseam.api.recipes import locate
from bitseam.cli.client import run_training
from bitseam.cli.server import run_server
from bitseam.config import Recipe
from bitseam.data.assets import cache_folder, fetch, require_cache
from bitseam.errors import AssetError, CheckError, ConfigError, DiskFullError, ModelError
from bitseam.runs.checkpoint import Identity, build_client, held, newest, save_client
from bitseam.runs.claim import claimed

pytest_plugins = ["disks"]


def save(recipe: Recipe, *steps: int) -> None:
    model = build_client(recipe, str)
    for step in steps:
        save_client(model, recipe, Identity("ab" * 16, step), recipe.folder)


def names(recipe: Recipe) -> set[str]:
    return {path.name for path in (recipe.folder / "client").iterdir()}


def test_O6_what_people_keep_beside_checkpoints_is_left_alone(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, out=str(tmp_path / "run"))
    save(recipe, 2, 4)
    side = recipe.folder / "client"
    theirs = ["step-000004.bak", "step-000004 copy", "step-4", "step-0000004", "step-٠٠٠٠٠٤", "step-", "step--00001"]
    for name in theirs:
        shutil.copytree(side / "step-000004", side / name)
    for name in ("step-000003", "step-notes", ".DS_Store"):
        (side / name).write_text("a file")
    (side / "step-latest").symlink_to("step-000004")
    theirs += ["step-000003", "step-notes", ".DS_Store", "step-latest"]
    assert held(recipe, "client") == ("ab" * 16, [2, 4])
    assert newest(recipe.folder, "client").name == "step-000004"
    save(recipe, 6, 8)
    assert held(recipe, "client")[1] == [6, 8]
    assert names(recipe) == {*theirs, "step-000006", "step-000008"}


@pytest.mark.parametrize("fault", ["empty", "half a config", "renamed"])
def test_O6_a_folder_that_is_no_whole_checkpoint_is_told_and_not_used(
    tiny: Tiny, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(tiny, out=str(tmp_path / "run"))
    save(recipe, 2, 4)
    other = recipe.folder / "client/step-000009"
    shutil.copytree(recipe.folder / "client/step-000004", other)
    if fault != "renamed":
        config = (other / "config.json").read_text()
        (other / "config.json").unlink()
        if fault == "half a config":
            (other / "config.json").write_text(config[:100])
    assert held(recipe, "client")[1] == [2, 4]
    assert newest(recipe.folder, "client").name == "step-000004"
    save(recipe, 6)
    assert names(recipe) == {"step-000004", "step-000006", "step-000009"}
    assert sum("step-000009: not used" in message for message in caplog.messages) == 1


def test_O6_where_none_is_whole_nobody_begins_anew(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, out=str(tmp_path / "run"))
    (recipe.folder / "client/step-000004").mkdir(parents=True)
    with pytest.raises(ModelError, match="client: no checkpoint there is whole"):
        held(recipe, "client")


def test_O6_a_checkpoint_that_was_moved_to_another_disk_is_read_and_its_link_alone_removed(
    tiny: Tiny, tmp_path: Path
) -> None:
    recipe = make_recipe(tiny, out=str(tmp_path / "run"))
    save(recipe, 2)
    (recipe.folder / "client/step-000002").rename(tmp_path / "moved")
    (recipe.folder / "client/step-000002").symlink_to(tmp_path / "moved")
    assert held(recipe, "client")[1] == [2]
    save(recipe, 4, 6)
    assert names(recipe) == {"step-000004", "step-000006"}
    assert (tmp_path / "moved/config.json").exists()


def test_O1_a_checkpoint_that_cannot_be_written_is_named(tiny: Tiny, disk: Disk) -> None:
    recipe = make_recipe(tiny, out=str(disk.folder))
    save(recipe, 2)
    disk.fill()
    with pytest.raises(ModelError, match="client: the checkpoint of step 4 could not be written: "):
        save(recipe, 4)
    assert held(recipe, "client")[1] == [2]
    disk.free()
    save(recipe, 4)
    assert names(recipe) == {"step-000002", "step-000004"}


HOLDER = """
import os, sys, time
from pathlib import Path
from bitseam.runs.claim import claimed
with claimed(Path(sys.argv[1]), "server"):
    if os.fork() == 0:  # a worker, which outlives us
        print(os.getppid(), os.getpid(), flush=True)
    time.sleep(60)
"""


def test_O2_a_folder_is_of_one_process_until_it_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pid, worker = map(int, holder.stdout.readline().split())
        try:
            taken = rf"server: another process \(pid {pid}\) runs in this folder"
            with pytest.raises(ConfigError, match=taken), claimed(tmp_path, "server"):
                pass
            with claimed(tmp_path, "client"):  # the other side has a folder of its own
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        try:
            for _ in range(2):
                with claimed(tmp_path, "server"):
                    pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_O2_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with claimed(tmp_path, "client"):
        assert "cannot be locked (No locks available)" in caplog.text


def test_O7_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        recipe = make_recipe(tiny, out=str(out), client__checkpoint="/nowhere", server__checkpoint="/nowhere")
        for run, side in ((run_training, "client"), (run_server, "server")):
            with pytest.raises(ConfigError, match=rf"{out}/{side}: cannot be written: Not a directory|File exists"):
                run(recipe)


def test_O7_a_read_only_disk_is_told_and_still_answers_can_be_given(
    tiny: Tiny, read_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(tiny, out=str(read_only / "run"), client__checkpoint="/nowhere", server__checkpoint="/nowhere")
    for run in (run_training, run_server):
        with pytest.raises(ConfigError, match="cannot be written: Read-only file system"):
            run(recipe)
    with claimed(recipe.folder, "server", needed=False):
        assert "Nothing is logged there" in caplog.text


def test_O7_a_cache_that_cannot_be_written_is_told_before_anything_is_loaded(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("BITSEAM_CACHE", str(tmp_path / "file"))
    recipe = make_recipe(tiny, out=str(tmp_path / "run"), client__checkpoint="/nowhere")
    with pytest.raises(CheckError, match=r"file.*BITSEAM_CACHE moves the cache"):  # and the checkpoint is wrong as well
        run_training(recipe)
    with pytest.raises(AssetError, match=r"file.*BITSEAM_CACHE moves the cache"):
        fetch(["cifar10"])


def test_O7_a_read_only_cache_that_holds_what_is_needed_is_no_fault(
    read_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITSEAM_CACHE", str(read_only))
    with pytest.raises(AssetError, match="Read-only file system"):
        require_cache("features")
    (tmp_path / "writable/features").mkdir()
    (tmp_path / "writable/features/some.npy").touch()
    require_cache("features")


def test_O7_a_full_cache_is_named(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITSEAM_CACHE", str(disk.folder / "cache"))
    disk.folder.joinpath("cache").mkdir()
    disk.fill()
    with pytest.raises(DiskFullError, match="BITSEAM_CACHE"):
        fetch(["cifar10"])


def test_O8_a_user_without_a_home(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "BITSEAM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 3_000_000_001)  # who stands in no list of users
    with pytest.raises(AssetError, match="name one in BITSEAM_CACHE"):
        cache_folder()
    assert locate(tiny.vision) == tiny.vision  # what lies in a folder needs no cache
    monkeypatch.setenv("BITSEAM_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
