"""Sixteen clients of one real server process, over mutual TLS: idle, and training at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from conftest import Tiny
from pairs import train
from tiny_run import write_tiny_run

from bitseam import config
from bitseam.data.batches import Batches
from bitseam.data.features import LiveFeatures
from bitseam.data.rows import read_rows
from bitseam.runs.checkpoint import build_client, held
from bitseam.sessions.client import ClientSession
from bitseam.sessions.terms import terms
from bitseam.text.prompts import Prompter
from bitseam.transport import Tls, connect, make_certificates

CLIENTS = 16
STEPS = 4


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> config.Recipe:
    path = write_tiny_run(tmp_path, tiny)
    (tmp_path / "certs").rename(tmp_path / "one")
    make_certificates(tmp_path / "certs", clients=[name_of(i) for i in range(CLIENTS)])
    text = path.read_text().replace("steps = 6", f"steps = {STEPS}\nclients = {CLIENTS}\ncalibrate = 2")
    path.write_text(text.replace("batch = 4", "batch = 2").replace("checkpoint_every = 2", "checkpoint_every = 100"))
    return config.load_recipe(path)


@contextmanager
def server(folder: Path) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "bitseam.cli.main", "serve", str(folder / "tiny.toml")]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"COLUMNS": "200"})
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            assert process.wait(60) == 0, (folder / "server.log").read_text()


def session_of(number: int, recipe: config.Recipe, stack: ExitStack) -> ClientSession:
    """An open session of one client, with a fresh half, as `bitseam train` makes it."""
    torch.manual_seed(number)
    model, prompter = build_client(recipe, str), Prompter(recipe.text)
    dial = partial(connect, recipe.network.address, Tls.from_folder(recipe.network.certificates, name_of(number)))
    session = ClientSession(model, dial, prompter.vocabulary, patience=60)
    stack.enter_context(session)
    agreed = terms(recipe, model.senders(), prompter, None)
    session.open(agreed, True, partial(held, recipe_of(number, recipe), "client"))
    return session


def recipe_of(number: int, recipe: config.Recipe) -> config.Recipe:
    """The same for every client, but for its folder."""
    return replace(recipe, out=f"{recipe.folder}-{number}")


def name_of(number: int) -> str:
    return f"client-{number:02}"


def test_sixteen_clients_train_one_server_half(
    recipe: config.Recipe, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rows = read_rows(recipe.data.train)
    failures: list[BaseException] = []
    with ExitStack() as stack:
        process = stack.enter_context(server(tmp_path))
        first = session_of(0, recipe, stack)  # what the first alone brings along is not the idle client's
        before = process.memory_info().rss
        sessions = [first, *(session_of(number, recipe, stack) for number in range(1, CLIENTS))]
        time.sleep(0.5)
        idle = (process.memory_info().rss - before) / (CLIENTS - 1)
        record_property("clients", CLIENTS)
        record_property("bytes_per_idle_client", round(idle))
        assert idle < 20e6

        def work(number: int, session: ClientSession) -> None:
            own = recipe_of(number, recipe)
            mine = rows[number % 4 :] + rows[: number % 4]  # data of its own
            batches = Batches(mine, LiveFeatures(session.model.vision), Prompter(recipe.text), 2, number)
            try:
                train(session, own, batches)
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=item) for item in enumerate(sessions)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not failures, failures
        assert all(session.reached == STEPS for session in sessions)
    log = [json.loads(line) for line in (recipe.folder / "server" / "log.jsonl").read_text().splitlines()]
    assert sorted(row["client"] for row in log) == sorted(STEPS * [name_of(i) for i in range(CLIENTS)])
