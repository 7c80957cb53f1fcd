"""A `Server` in a process of one's own: started, stopped, and what cannot be."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import Tiny
from tiny_run import write_tiny_run

from bitseam import Client, Server, load_recipe
from bitseam.config import Recipe
from bitseam.errors import (
    AddressInUseError,
    BusyError,
    ClaimedError,
    ClosedError,
    ConfigError,
    PeerGoneError,
    RefusedError,
    UsageError,
)
from bitseam.train import StepRecord

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Recipe:
    return load_recipe(write_tiny_run(tmp_path, tiny), {"network.address": "localhost:0", "network.patience": 0.0})


def test_it_is_started_once_and_stopped_for_good(recipe: Recipe, tmp_path: Path) -> None:
    server = Server(tmp_path / "tiny.toml")
    for early in (lambda: server.address, server.client_recipe, server.wait):
        with pytest.raises(ClosedError, match="was not started"):
            early()
    with pytest.raises(ClosedError, match="no language half"):
        _ = server.step
    with server:
        assert server.address == server.recipe.network.address
        assert (server.step, server.wait(0)) == (0, False)
        with pytest.raises(UsageError, match="listens already"):
            server.start()
    server.stop()
    assert server.wait()
    for late in (server.start, server.load):
        with pytest.raises(ClosedError, match="this server is closed"):
            late()
    with pytest.raises(PeerGoneError):
        Client.open(load_recipe(tmp_path / "tiny.toml", {"network.patience": 0.0}), purpose="train")
    with Server(tmp_path / "tiny.toml") as again:  # folder and port are free
        assert again.address == server.address


def test_port_0_is_a_free_one_that_clients_are_told(recipe: Recipe) -> None:
    with Server(recipe) as server:
        host, _, port = server.address.rpartition(":")
        assert (host, int(port) > 0) == ("localhost", True)
        assert server.client_recipe().network.address == server.address
        with Client.open(server.client_recipe(), purpose="train") as client:
            client.train(2)
            assert server.step == 2


def test_a_taken_port_and_a_taken_folder_are_named(recipe: Recipe, tmp_path: Path) -> None:
    with Server(recipe) as server:
        same = {"network.address": server.address}
        second = Server(load_recipe(tmp_path / "tiny.toml", {**same, "out": str(tmp_path / "other")}))
        with pytest.raises(AddressInUseError, match=r"the port is in use"):
            second.start()
        with pytest.raises(ClaimedError, match="run/server: this process has a server or client in this"):
            Server(recipe).start()
    second.start().stop()  # what failed has left nothing behind


def test_stop_waits_for_the_step_of_a_client_that_trains(recipe: Recipe, tmp_path: Path) -> None:
    many = {"train.steps": 100_000, "train.checkpoint_every": 50_000, "network.patience": 0.0}
    server = Server(load_recipe(tmp_path / "tiny.toml", many)).start()
    stopping = threading.Thread(target=server.stop)
    records: list[StepRecord] = []

    def on_step(record: StepRecord) -> None:
        records.append(record)
        if record.step == 2:
            stopping.start()

    with Client.open(server.client_recipe(), purpose="train") as client, pytest.raises(PeerGoneError):
        client.train(callbacks=[on_step])
    stopping.join()
    assert server.wait(0)
    last = f"step-{records[-1].step:06d}"
    assert all((recipe.folder / side / last).is_dir() for side in ("client", "server"))
    assert records[-1].step < 1000


def test_from_a_checkpoint_nobody_trains(recipe: Recipe) -> None:
    with Server(recipe) as server, Client.open(server.client_recipe(), purpose="train") as client:
        client.train(2)
    folder = recipe.folder / "server" / "step-000002"
    with Server(recipe, folder) as server:
        with Client.open(
            server.client_recipe(), recipe.folder / "client" / "step-000002", purpose="evaluate"
        ) as client:
            assert len(client.evaluate().answers) == 8
        with pytest.raises(RefusedError, match="to answer from one checkpoint"):
            Client.open(server.client_recipe(), purpose="train")


def test_calls_from_two_threads_are_refused(recipe: Recipe) -> None:
    server, refused = Server(recipe), threading.Event()

    def attempt() -> None:
        try:
            server.stop()
        except BusyError:
            refused.set()

    with server._guard("start()"):
        other = threading.Thread(target=attempt)
        other.start()
        other.join()
    assert refused.is_set()


def test_what_goes_wrong_in_its_thread_comes_out(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("bitseam.serve.sessions.Sessions.wait_for_trainers", fail)
    server = Server(recipe).start()
    server._ending.set()
    with pytest.raises(RuntimeError, match="out of luck"):
        server.wait()
    with pytest.raises(RuntimeError, match="out of luck"):
        server.stop()
    with Server(recipe) as again:  # the folder is free all the same
        monkeypatch.undo()
        assert again.step == 0


@pytest.mark.slow
def test_a_script_that_forgets_to_stop_it_ends_all_the_same(recipe: Recipe, tmp_path: Path) -> None:
    source = f"from bitseam import Server; Server({str(tmp_path / 'tiny.toml')!r}).start(); raise SystemExit(7)"
    assert subprocess.run([sys.executable, "-c", source], timeout=120).returncode == 7
    assert "parameters" in (recipe.folder / "server" / "summary.json").read_text()  # written as it stops


def test_recipes_that_cannot_be_are_named_at_once(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    for overrides, named in (
        ({"network.address": "nowhere"}, "tiny.toml: network.address 'nowhere': write host:port"),
        ({"network.metrics": "x"}, "tiny.toml: network.metrics 'x'"),
        ({"streams.image.codec": "gzip"}, "tiny.toml: .*gzip"),
        ({"streams.image.gradient": {"id": "stochastic", "levles": 3}}, "tiny.toml: .*levles"),
        ({"train.stepps": 3}, "tiny.toml: train.stepps: unknown key"),
    ):
        with pytest.raises(ConfigError, match=named):
            load_recipe(path, overrides)
    with pytest.raises(UsageError, match="or tables; this is int"):
        Server(3)  # type: ignore[arg-type]


def test_importing_the_package_and_the_help_take_no_torch() -> None:
    source = "import bitseam, sys; assert not {'torch', 'grpc', 'pydantic'} & set(sys.modules); print(dir(bitseam))"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("Client", "Server", "Stream", "load_recipe"):
        assert repr(name) in done.stdout
