"""A `Client` and a `Server` in one process, over real gRPC."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from PIL import Image
from tiny_run import write_tiny_run

from bitseam import Client, Server, load_recipe
from bitseam.config import Recipe
from bitseam.errors import BusyError, ClosedError, ConfigError, DataError, ModelError, UsageError
from bitseam.sessions.peer import Peer
from bitseam.train import StepRecord

pytestmark = pytest.mark.usefixtures("cache")

QUESTION = "is this a cat ?"


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Recipe:
    return load_recipe(write_tiny_run(tmp_path, tiny), {"network.address": "localhost:0", "network.patience": 5.0})


@pytest.fixture
def served(recipe: Recipe) -> Iterator[Recipe]:
    """A recipe for clients, while its server runs."""
    with Server(recipe) as server:
        yield server.client_recipe()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8))


def weights(client: Client) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in client.model.state_dict().items()}


def test_training_takes_steps_tells_callbacks_and_goes_on(served: Recipe) -> None:
    records: list[StepRecord] = []
    with Client.open(served, purpose="train") as client:
        assert client.train(2, callbacks=[records.append]).name == "step-000002"
        assert client.train(callbacks=[lambda record: records.append(record) or record.step == 5]).name == "step-000005"
        assert client.reached == 5
    assert [record.step for record in records] == [1, 2, 3, 4, 5]
    assert all(later.up_bytes > record.up_bytes for record, later in pairwise(records))
    with Client.open(served, purpose="train") as client:  # the folder has the run
        assert client.reached == 5
        assert client.train().name == "step-000006"
        assert client.train(3).name == "step-000006"  # there are no more
        assert client.received.bytes > records[-1].down_bytes
        assert client.sent.fp16_bytes > client.sent.bytes > records[-1].up_bytes
        assert client.sent.bytes == client.ledger.total("up").bytes == sum(client.sent.parts.values())


def test_a_loop_of_ones_own_is_the_training(recipe: Recipe, tmp_path: Path) -> None:
    def run(name: str, loop: Callable[[Client], Any]) -> dict[str, torch.Tensor]:
        here = load_recipe(tmp_path / "tiny.toml", {"network.address": "localhost:0", "out": str(tmp_path / name)})
        with Server(here) as server, Client.open(server.client_recipe(), purpose="train") as client:
            loop(client)
            return weights(client)

    def own(client: Client) -> None:
        losses = [client.step(batch).loss for batch in client.batches()]
        assert len(losses) == client.reached == 6

    whole, ours = run("whole", Client.train), run("own", own)
    assert whole.keys() == ours.keys()
    assert all(torch.equal(whole[name], ours[name]) for name in whole)
    files = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("step-*/*")}
    assert files == {path.relative_to(tmp_path / "own") for path in (tmp_path / "own").rglob("step-*/*")}


def test_batches_and_steps_that_do_not_fit_are_named(served: Recipe) -> None:
    with Client.open(served, purpose="train") as client:
        with pytest.raises(UsageError, match="draw another batch"):
            client.step([])
        batches = client.batches()
        batch = next(batches)
        with pytest.raises(UsageError, match="was not given to step"):
            next(batches)
        client.step(batch)
        with pytest.raises(UsageError, match=r"0 micro-batches came where train.accumulate is 1"):
            client.step(batch)
        with pytest.raises(UsageError, match="pairs of tower features"):
            client.step([picture()])  # type: ignore[list-item]
        with pytest.raises(UsageError, match="not int"):
            client.step(7)  # type: ignore[arg-type]
        assert client.reached == 1
        client.train()
        with pytest.raises(UsageError, match="all 6 steps"):
            client.step([])
        assert list(client.batches()) == []


def test_a_step_that_was_broken_off_is_not_gone_on_with(recipe: Recipe, tmp_path: Path) -> None:
    recipe = load_recipe(tmp_path / "tiny.toml", {"network.address": "localhost:0", "train.accumulate": 2})
    with Server(recipe) as server:
        served = server.client_recipe()
        with Client.open(served, purpose="train") as client:
            client.train(1)
            first, _ = next(client.batches())
            with pytest.raises(UsageError, match="1 micro-batches came"):
                client.step([first])
            for call in (client.train, client.save, lambda: client.ask(picture(), QUESTION)):
                with pytest.raises(UsageError, match="step 2 was broken off"):
                    call()
        with Client.open(served, purpose="train") as client:
            assert client.reached == 1
            client.train()


def test_an_interrupt_in_the_middle_of_a_message_is_survived(served: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Peer.receive
    with Client.open(served, purpose="train") as client:

        def interrupted(peer: Peer, *given: Any) -> Any:
            if peer.ledger is client.ledger:  # and not the server's, which is in this process too
                raise KeyboardInterrupt
            return receive(peer, *given)

        client.train()
        before = str(client.ask(picture(), QUESTION))
        with monkeypatch.context() as patch:
            patch.setattr(Peer, "receive", interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.ask(picture(), QUESTION)
        assert str(client.ask(picture(), QUESTION)) == before


def test_a_callback_that_fails_ends_the_training_between_two_steps(served: Recipe) -> None:
    with Client.open(served, purpose="train") as client:
        with pytest.raises(ZeroDivisionError):
            client.train(callbacks=[lambda record: 0 // (3 - record.step)])
        assert client.reached == 3
        assert client.train().name == "step-000006"


def test_answers_come_whole_and_in_pieces_with_the_bytes_that_crossed(served: Recipe, tmp_path: Path) -> None:
    with Client.open(served, purpose="train") as client:
        client.train()
    picture().save(tmp_path / "picture.png")
    with Client.open(served) as client:
        answer = client.ask(picture(), QUESTION, max_new_tokens=8)
        assert str(answer) == answer.text
        assert answer.text
        streamed = client.stream(tmp_path / "picture.png", QUESTION, 8)
        assert not streamed.over
        pieces = list(streamed)
        assert "".join(pieces) == streamed.text == answer.text
        assert (streamed.sent, streamed.received) == (answer.sent, answer.received)
        assert answer.sent.parts["image"] == client.ledger.coded_bytes("Ask", "image") / 2
        assert 2 * answer.sent.bytes == client.ledger.total("up").bytes - _opening(client)
        assert answer.sent.fp16_bytes - answer.sent.bytes == 2 * 4 * 32 - answer.sent.parts["image"]
        assert 0 < answer.received.bytes == answer.received.fp16_bytes
        assert "bytes (" in repr(answer)


def _opening(client: Client) -> int:
    return sum(entry.bytes for (way, kind, _), entry in client.ledger.entries.items() if (way, kind) == ("up", "Hello"))


def test_an_answer_that_is_left_or_interleaved_gives_way(served: Recipe) -> None:
    with Client.open(served, purpose="train") as client:
        client.train()
        whole = [str(client.ask(picture(), question)) for question in (QUESTION, "what is there ?")]
        for _ in client.stream(picture(), QUESTION):
            break
        first, second = (client.stream(picture(), question) for question in (QUESTION, "what is there ?"))
        assert "".join(second) == whole[1]
        assert "".join(first) == whole[0]
        left = client.stream(picture(), QUESTION)
    with pytest.raises(ClosedError, match="reading an answer: this client is closed"):
        next(left)


def test_a_client_that_trains_is_asked_as_its_checkpoint_is(served: Recipe) -> None:
    with Client.open(served, purpose="train") as client:
        client.train(4)
        expected = client.evaluate()
        during: list[Any] = []
        client.train(1, callbacks=[lambda record: during.append((client.evaluate(), str(client.save())))])
        assert during[0][1].endswith("step-000005")
        assert sum(score.total for score in expected.scores.values()) == len(expected.answers) == 8
        last = client.evaluate()
    with Client.open(served, purpose="train") as client:  # whose weights are fresh until it goes on
        assert client.evaluate() == last == during[0][0]
    with Client.open(served, purpose="evaluate") as client:
        assert client.evaluate() == last


def test_calls_that_cannot_be_are_named(served: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint there; train first"):
        Client.open(served)
    with pytest.raises(UsageError, match="purpose 'chat': 'train', 'evaluate', 'ask'"):
        Client.open(served, purpose="chat")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="or tables; this is int"):
        Client.open(7)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="goes on where the recipe's folder ends"):
        Client.open(served, tmp_path, purpose="train")
    with Client.open(served, purpose="train") as client:
        client.train()
    with Client.open(served) as client:
        for call in (
            client.train,
            client.save,
            client.evaluate,
            lambda: client.step([]),
            lambda: next(client.batches()),
        ):
            with pytest.raises(UsageError, match="this client is open to ask; open one with purpose='train'"):
                call()
        for image, question, most, error, named in (
            (np.zeros((4, 4, 3)), QUESTION, 8, UsageError, "image: a PIL image or the path of a file, not ndarray"),
            (tmp_path / "none.png", QUESTION, 8, DataError, "none.png"),
            (picture(), ["a"], 8, UsageError, "question: a text, not list"),
            (picture(), "dog " * 600, 8, DataError, "text.max_tokens"),
            (picture(), QUESTION, 0, UsageError, "max_new_tokens 0: from 1 to 512"),
            (picture(), QUESTION, 513, UsageError, "max_new_tokens 513: from 1 to 512"),
            (picture(), QUESTION, True, UsageError, "max_new_tokens True"),
        ):
            with pytest.raises(error, match=named):
                client.ask(image, question, most)  # type: ignore[arg-type]
        assert str(client.ask(picture(), QUESTION))  # none of them has hurt it
    with Client.open(served, purpose="train") as client:
        for steps in (0, -1, 1.0, True):
            with pytest.raises(UsageError, match="steps"):
                client.train(steps)  # type: ignore[arg-type]
        for callbacks in (print, [7], "ab"):
            with pytest.raises(UsageError, match="callbacks: a list of functions"):
                client.train(callbacks=callbacks)  # type: ignore[arg-type]
    client.close()
    for call in (client.train, client.save, client.evaluate, lambda: client.ask(picture(), QUESTION)):
        with pytest.raises(ClosedError, match="this client is closed"):
            call()


def test_two_threads_and_calls_inside_of_calls_are_refused(served: Recipe) -> None:
    refused: dict[str, BaseException] = {}

    def attempt(name: str, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            refused[name] = error

    with Client.open(served, purpose="train") as client:

        def inside(record: StepRecord) -> None:
            other = threading.Thread(target=attempt, args=("thread", lambda: client.ask(picture(), QUESTION)))
            other.start()
            other.join()
            attempt("train", client.train)
            attempt("step", lambda: client.step([]))
            attempt("close", client.close)

        client.train(1, callbacks=[inside])
        assert {name: type(error) for name, error in refused.items()} == dict.fromkeys(
            ("thread", "train", "step", "close"), BusyError
        )
        assert "ask(): this client is in train(), of another thread" in str(refused["thread"])
        client.train()
    log = (Path(served.out) / "client" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]


def test_there_is_nothing_to_evaluate_on(served: Recipe, tmp_path: Path) -> None:
    bare = load_recipe(tmp_path / "tiny.toml", {"network.address": served.network.address, "data.test": ""})
    with pytest.raises(ConfigError, match=r"data\.test is empty"):
        Client.open(bare, purpose="evaluate")
    with Client.open(bare, purpose="train") as client, pytest.raises(ConfigError, match=r"data\.test is empty"):
        client.evaluate()


@pytest.mark.slow
def test_a_script_that_forgets_to_close_it_ends_all_the_same(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"  # whose port is a fixed one
    source = f"from bitseam import Client; c = Client.open({str(path)!r}, purpose='train'); c.train(2); exit(7)"
    with Server(path):
        assert subprocess.run([sys.executable, "-c", source], timeout=60).returncode == 7
