"""Workers that decode ahead: the same pixels as without, named errors, and none left behind by a killed process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from conftest import Tiny, make_recipe
from test_rows import picture

from bitseam.data.features import LiveFeatures
from bitseam.errors import DataError
from bitseam.models.vision.half import VisionHalf, load_vision_half


@pytest.fixture(scope="module")
def half(tiny: Tiny) -> VisionHalf:
    return load_vision_half(make_recipe(tiny).client, 32)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [picture(folder / f"{i}.png", i) for i in range(6)]


@pytest.fixture(scope="module")
def live(half: VisionHalf) -> Iterator[LiveFeatures]:
    features = LiveFeatures(half, workers=1)
    yield features
    features.close()


def test_workers_give_the_pixels_of_the_thread(live: LiveFeatures, half: VisionHalf, images: list[Path]) -> None:
    alone = LiveFeatures(half)
    groups = [tuple(images[i : i + 2]) for i in (0, 2, 4)]
    live.expect(groups)
    for group in (*reversed(groups), groups[0], (images[3],)):  # in another order, again, and unexpected
        assert torch.equal(live.pixels(group), alone.pixels(group))
        assert torch.equal(live.of(group), alone.of(group))


def test_an_image_that_a_worker_cannot_read_is_named_as_ever(
    live: LiveFeatures, images: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:2000])
    live.expect([(images[0],), (broken,), (images[1],)])
    assert len(live.pixels((images[0],))) == 1
    with pytest.raises(DataError, match=r"broken.png: not a readable image"):
        live.pixels((broken,))
    assert len(live.pixels((images[1],))) == 1


def test_the_language_half_and_the_weights_stay_where_they_are(half: VisionHalf) -> None:
    assert list(half.preprocessing().parameters()) == []
    assert list(half.parameters()) != []


SCRIPT = """
import sys, threading, time
from pathlib import Path
from bitseam.data.loader import Loader
import grpc, torch

calls = []

def pixels(images):
    {what}
    return torch.zeros(len(images), 3, 4, 4)

if __name__ == "__main__":
    server = grpc.server(__import__("concurrent.futures").futures.ThreadPoolExecutor())  # threads of gRPC
    server.start()
    loader = Loader(pixels, 2)
    images = [(Path(name),) for name in sys.argv[1:]]
    loader.expect(images)
    try:
        loader.of(images[0])
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        loader.close()
        server.stop(0)
        sys.exit(1)
    print("ready", flush=True)
    time.sleep(600)
"""


def script(folder: Path, what: str) -> subprocess.Popen[str]:
    path = folder / "job.py"
    path.write_text(SCRIPT.format(what=what))
    images = [str(picture(folder / f"{i}.png", i)) for i in range(3)]
    return subprocess.Popen([sys.executable, str(path), *images], stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_no_worker_behind(tmp_path: Path) -> None:
    """Neither one that waits for work, nor one that is at it."""
    process = script(tmp_path, "calls.append(0); time.sleep(600 if len(calls) > 1 else 0)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    left = psutil.Process(process.pid).children(recursive=True)
    assert len(left) >= 3  # the two, and multiprocessing's own, which cleans up after them
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []


@pytest.mark.skipif(sys.platform != "linux", reason="nobody says there who has sent a signal")
def test_O14_a_supervisor_that_tells_every_process_to_stop_leaves_the_step_its_workers(tmp_path: Path) -> None:
    """At their work, and before they have come to it."""
    process = script(tmp_path, "import os; [os.kill(os.getpid(), s) for s in (1, 15)]; time.sleep(0.2)")
    assert process.stdout is not None
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert process.poll() is None
        workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in str(child.cmdline())]
    for worker in workers:
        worker.terminate()
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    process.stdout.close()


MASKS = """
import multiprocessing, signal
from concurrent.futures import ProcessPoolExecutor
from bitseam.data.loader import start_workers

def mask():
    return sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, []))

if __name__ == "__main__":
    with start_workers(1) as workers:
        held = workers.submit(mask).result()
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as others:
        print(held, mask(), others.submit(mask).result())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no signals are held off there")
def test_O14_signals_are_held_off_in_workers_alone(tmp_path: Path) -> None:
    """Not in this process, nor in others that somebody starts by multiprocessing's one fork server."""
    (tmp_path / "job.py").write_text(MASKS)
    done = subprocess.run([sys.executable, str(tmp_path / "job.py")], capture_output=True, text=True, check=True)
    assert done.stdout == "[1, 15] [] []\n"


def test_a_worker_that_is_killed_is_told(tmp_path: Path) -> None:
    process = script(tmp_path, "__import__('os').kill(__import__('os').getpid(), 9)")
    told = process.communicate(timeout=60)[0]
    assert told.startswith("DataError a process that decodes images ended")
    assert "data.workers = 0" in told
