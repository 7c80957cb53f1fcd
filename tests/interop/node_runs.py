"""All that the JavaScript client does against real servers with tiny checkpoints, and what the servers say of it."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from conftest import WIDTH, Tiny
from node_process import CLIENT, Node, Row, bitseam, install, node, server
from small_models import saved

from bitseam.cli.machine import free_port
from bitseam.config import Recipe, load_recipe
from bitseam.serve.sessions import Sessions
from bitseam.sessions.connection import Connection
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.party import ServerParty
from bitseam.sessions.terms import terms
from bitseam.streams import Sender
from bitseam.text.prompts import Prompter
from bitseam.text.symbols import DICTIONARY, read_dictionary, text_message
from bitseam.transport import Listener, Tls, connect
from bitseam.wire import VERSION
from bitseam.wire import messages_pb2 as pb

STEPS, CRASH_AFTER, STOPPED_IN, BATCH, IMAGE_TOKENS = 10, 7, 9, 4, 4
TRAIN = {"steps": STEPS, "accumulate": 2, "checkpoint_every": 5, "clients": 1, "sharing": "sequential", "round": 50}
UP = {"id": "uniform", "levels": 4, "clip": 1.5}
DOWN = {"id": "stochastic", "levels": 4, "block": "token"}
ENTROPY_UP = {"id": "entropy-uniform", "groups": 4, "contexts": 5}
ENTROPY_DOWN = {"id": "entropy-stochastic", "step": 1.0}

# The server learns nothing: its model is frozen, its projection fixed. What the loss falls by, the client has learned.
RECIPE = """
name = "interop"
device = "cpu"
threads = 1
out = "{folder}/run"
[client]
checkpoint = "a linear map"
[server]
checkpoint = "{language}"
tune = "frozen"
[seam]
width = {width}
[streams.image]
levels = 4
clip = 1.5
projection = "fixed"
[text]
tokenizer = "{tokenizer}"
prompt = "what {{image}} {{question}}"
[data]
train = "{folder}/rows.jsonl"
[train]
steps = {steps}
batch = 8
accumulate = 2
checkpoint_every = 5
[network]
address = "localhost:{port}"
certificates = "{folder}/certs"
"""


@dataclass
class Outcome:
    """rows: what each command of the client reported. python_ids: what our own client is answered to the same codes.
    step_counter: optimiser steps that the server has counted when it is stopped. server_steps: of its checkpoints."""

    rows: dict[str, list[Row]]
    python_ids: list[int]
    step_counter: int
    server_steps: list[int]

    def steps(self, command: str) -> dict[int, Row]:
        return {row["step"]: row for row in self.rows[command] if "step" in row}

    def row(self, command: str, check: str) -> Row:
        return next(row for row in self.rows[command] if row["check"] == check)


def play(folder: Path, tiny: Tiny) -> Outcome:
    """Everything that the client does, against a server process with the tiny checkpoints, in `folder`."""
    install()
    recipe = _prepare(folder, tiny)
    settings = str(folder / "settings.json")
    bitseam("certs", str(folder / "certs"), cwd=folder)
    rows = {"vectors": node("vectors", str(CLIENT.parent / "vectors"))}
    with ExitStack() as stack:
        with server(folder) as first:
            rows["refused"] = node("refused", settings)
            rows["train"] = node("train", settings, "--crash-after", str(CRASH_AFTER))
            again = stack.enter_context(Node("train", settings, "--pause-in", str(STOPPED_IN)))
            rows["train again"] = again.until_it_waits()
            counter = _counted_steps(folder)
            first.stop()
            again.go_on()
            first.ended()
        stack.enter_context(server(folder))
        rows["train again"] += again.rest()
        rows["ask"] = node("ask", settings)
        run = json.loads((folder / f"client/step-{STEPS}.json").read_text())
        answered = next(row for row in rows["ask"] if "ids" in row)
        ids = _python_answer(recipe, f"{run['run']}@{STEPS}", bytes.fromhex(run["dictionary"]), answered)
        rows["train at the entropy"] = _train_at_the_entropy(folder)
    written = sorted(int(path.name.removeprefix("step-")) for path in (folder / "run/server").glob("step-*"))
    return Outcome(rows, ids, counter, written)


def _prepare(folder: Path, tiny: Tiny) -> Recipe:
    language = saved(folder / "language", "LlamaConfig", bos_token_id=1, eos_token_id=2, initializer_range=0.3)
    port = free_port()
    path = folder / "recipe.toml"
    path.write_text(
        RECIPE.format(folder=folder, language=language, tokenizer=tiny.tokenizer, width=WIDTH, steps=STEPS, port=port)
    )
    settings = {
        "address": f"localhost:{port}",
        "certificates": "certs",
        "checkpoints": "client",
        "tokenizer": tiny.tokenizer,
        "vision": "a linear map",
        "language": language,
        "width": WIDTH,
        "channels": WIDTH,
        "up": UP,
        "down": DOWN,
        "train": TRAIN,
        "rate": 0.006,
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=1))
    return load_recipe(path)


def _train_at_the_entropy(folder: Path) -> list[Row]:
    """The same training with codes and gradients at their entropy, in plaintext; the server is a thread of ours."""
    again = folder / "entropy"
    again.mkdir()
    codecs = {"streams.image.codec": ENTROPY_UP, "streams.image.gradient": ENTROPY_DOWN, "out": str(again)}
    recipe = load_recipe(folder / "recipe.toml", codecs)
    listener = Listener("localhost:0", Sessions(ServerParty(recipe, str)), None)
    listener.start()
    try:
        settings = json.loads((folder / "settings.json").read_text())
        settings |= {"address": f"localhost:{listener.port}", "certificates": None}
        settings |= {"up": ENTROPY_UP | {"levels": 4, "clip": 1.5}, "down": ENTROPY_DOWN}
        (again / "settings.json").write_text(json.dumps(settings))
        return node("train", str(again / "settings.json"))
    finally:
        listener.stop()


def _python_answer(recipe: Recipe, weights: str, dictionary: bytes, answered: Row) -> list[int]:
    """What our own client's connection gets for the same codes, with the question in its own prompter's tokens."""
    sender = Sender("image", 0, recipe.streams["image"], WIDTH)
    prompter = Prompter(recipe.text)
    tls = Tls.from_folder(Path(recipe.network.certificates), "client")
    connection = Connection(lambda: connect(recipe.network.address, tls), Ledger([sender]), patience=0)
    agreed = terms(recipe, {"image": sender}, prompter, weights)
    connection.open(lambda: pb.Hello(version=VERSION, purpose=pb.ASK, terms=agreed, image_tokens=IMAGE_TOKENS))
    whole = read_dictionary(dictionary).rjust(DICTIONARY, b"\0")
    text = text_message(prompter.batch(["is this a cat ?"]), prompter.vocabulary, whole)
    coded = pb.Coded(shape=answered["shape"], payload=bytes.fromhex(answered["payload"]))
    try:
        asked = pb.Ask(text=text, streams=[coded], max_new_tokens=len(answered["ids"]))
        return [ids[0] for ids in connection.stream(asked)]
    finally:
        connection.close("")


def _counted_steps(folder: Path) -> int:
    """The server's own counter of optimiser steps."""
    url = json.loads((folder / "run/server/metrics.json").read_text())["metrics"]
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    return round(sum(float(value) for value in re.findall(r"^bitseam_steps(?:_total)?\{.*\} (\S+)$", text, re.M)))
