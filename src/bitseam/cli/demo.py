"""`bitseam demo`: the whole way on real weights and photographs, in two processes over TLS, twice.

Everything is done by the same commands that a user types; this file starts them and gathers what they wrote.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bitseam.cli.machine import circumstances, free_port
from bitseam.config import Recipe, find_recipe, load_recipe
from bitseam.console import Terminal
from bitseam.data.assets import fetch, path_of
from bitseam.data.cifar_questions import CLASSES, write_questions
from bitseam.data.rows import Row, read_rows
from bitseam.errors import BitseamError
from bitseam.evals.compare import compare
from bitseam.evals.marks import mark, packed
from bitseam.evals.report import summary_table, write_html
from bitseam.runs.folders import writable
from bitseam.transport import make_certificates

RECIPE = "demo"  # by name: it comes with Bitseam
_FP16 = ["streams.image={quantizer = 'none', codec = 'fp16', gradient = 'fp16'}"]
_CHANCE = {"recognition": 1 / len(CLASSES), "position": 1 / len(CLASSES), "existence": 0.5}
_TRAIN, _TEST = 7000, 1000  # photographs
_SAMPLES = 12
stdout = Terminal()


def run_demo(out: Path, settings: list[str]) -> None:
    """Fetch, train twice, evaluate, ask, and write OUT/report.json and OUT/report.html.

    Raises ConfigError where OUT cannot be written, before anything is fetched.
    """
    recipe = load_recipe(RECIPE)
    writable(out)
    fetch(["dinov2-small", "stories15m", "cifar10"])
    questions, certificates = out / "questions", out / "certs"
    if not (questions / "test.jsonl").exists():
        write_questions(path_of("cifar10"), questions, _TRAIN, _TEST, recipe.seed)
    if not certificates.exists():
        make_certificates(certificates)
    tests = read_rows(questions / "test.jsonl")
    common = [
        f"data.train={questions}/train.jsonl",
        f"data.test={questions}/test.jsonl",
        f"network.certificates={certificates}",
        f"network.address=localhost:{free_port()}",
        *settings,
    ]
    report = _empty(recipe)
    for variant, codecs in (("fp16", _FP16), ("coded", [])):
        options = [*codecs, *common, f"out={out / variant}"]
        stdout.rule(variant)
        shutil.rmtree(out / variant, ignore_errors=True)  # a run that is there would be gone on with, not measured
        with _server(out / variant, options, report["commands"]):
            _run(["train", RECIPE, *_sets(options)], report["commands"])
            if variant == "coded":
                report["asked"] = [_ask(row, options, out, report["commands"]) for row in _one_of_each(tests)]
        _gather(report, variant, out / variant)
    ends = {variant: _summary(out / variant, "client") for variant in ("fp16", "coded")}
    answers = {variant: end["answers"] for variant, end in ends.items()}
    coded, fp16 = (mark(variant, ends[variant]["seed"], tests, answers[variant]) for variant in ("coded", "fp16"))
    report |= {"marks": packed([coded, fp16]), "comparison": compare(coded, fp16).as_json()}
    report["samples"] = [
        {**_shown(tests[i], out), "fp16": answers["fp16"][i], "coded": answers["coded"][i]} for i in _spread(tests)
    ]
    (out / "report.json").write_text(json.dumps(report, indent=1))
    page = write_html(report, out)
    stdout.print(summary_table(report))
    stdout.print(f"The report: {page}")


@contextmanager
def _server(folder: Path, options: list[str], commands: list[str]) -> Iterator[None]:
    """`bitseam serve` in a process of its own, its output in a file, stopped as an operator would stop it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = _command(["serve", RECIPE, *_sets(options)], commands)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    if process.returncode:
        raise BitseamError(f"the server ended with status {process.returncode}; see {folder / 'server.log'}")


def _run(words: list[str], commands: list[str], capture: bool = False) -> str:
    process = subprocess.run(_command(words, commands), stdout=subprocess.PIPE if capture else None, text=True)
    if process.returncode:
        raise BitseamError(f"`bitseam {words[0]}` ended with status {process.returncode}; its error stands above")
    return process.stdout or ""


def _command(words: list[str], commands: list[str]) -> list[str]:
    commands.append(shlex.join(["bitseam", *words]))
    return [sys.executable, "-m", "bitseam.cli.main", *words]


def _sets(options: list[str]) -> list[str]:
    return [word for option in options for word in ("--set", option)]


def _ask(row: Row, options: list[str], out: Path, commands: list[str]) -> dict[str, str]:
    words = ["ask", str(row.image), row.question, "--recipe", RECIPE, *_sets(options)]
    return {**_shown(row, out), "said": _run(words, commands, capture=True).strip()}


def _gather(report: dict[str, Any], variant: str, folder: Path) -> None:
    client, server = _summary(folder, "client"), _summary(folder, "server")
    names = ("up_bytes", "down_bytes", "socket_bytes", "steps", "ledger")
    report["traffic"][variant] = {name: client[name] for name in names}
    report["seconds"][variant] = client["train_seconds"]
    report["memory"][variant] = {side: s["peak_memory_bytes"] for side, s in (("client", client), ("server", server))}
    report["parameters"] = {"client": client["parameters"], "server": server["parameters"]}
    for task, score in client["tasks"].items():
        report["tasks"].setdefault(task, {"chance": _CHANCE[task]})[variant] = score
    log = [json.loads(line) for line in (folder / "client" / "log.jsonl").read_text().splitlines()]
    report["curves"][variant] = {name: [row[name] for row in log] for name in ("step", "loss")}


def _summary(folder: Path, side: str) -> dict[str, Any]:
    return json.loads((folder / side / "summary.json").read_text())


def _shown(row: Row, out: Path) -> dict[str, str]:
    image = str(row.image.relative_to(out))
    return {"image": image, "task": row.task, "question": row.question, "answer": row.answer}


def _one_of_each(rows: list[Row]) -> list[Row]:
    return [next(row for row in rows if row.task == task) for task in _CHANCE]


def _spread(rows: list[Row]) -> list[int]:
    """The first rows of each task, so that nobody has picked them."""
    by_task = [[i for i, row in enumerate(rows) if row.task == task] for task in _CHANCE]
    return [i for task in by_task for i in task[1 : 1 + _SAMPLES // len(by_task)]]


def _empty(recipe: Recipe) -> dict[str, Any]:
    """The circumstances, and empty places for what the runs give."""
    places: dict[str, Any] = {name: {} for name in ("traffic", "tasks", "seconds", "memory", "curves")}
    return {
        **circumstances(recipe.threads or torch.get_num_threads()),
        **places,
        "commands": [],
        "recipe": find_recipe(RECIPE).read_text(),
    }
