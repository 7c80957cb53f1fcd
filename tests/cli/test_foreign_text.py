"""Rows, names and answers with markup, control characters and special tokens, through the commands."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from conftest import Tiny
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID
from in_process import Command, flat, steady
from test_two_processes import Work, ended
from tiny_run import write_tiny_run

pytest_plugins = ["in_process"]

TASKS = ("[mri] left", "[/other]", "\x1b[2J\x1b]0;owned\x07\r\nline", "\u202egnp.exe | <b>")
LONG = "yes no yes no red blue cat dog a cat yes no"
CLIENT = "[/clinic] \x1b[31m"


@pytest.fixture
def work(tiny: Tiny, tmp_path: Path) -> Work:
    """A run whose text is not kind: tasks, questions, the images' folder, and the client's name."""
    recipe = write_tiny_run(tmp_path, tiny)
    folder = tmp_path / "[img] [b]\x1b[2J"
    folder.mkdir()
    rows = []
    for number in range(8):
        (tmp_path / f"{number}.png").rename(folder / f"{number}.png")
        question = ("is this a cat ? [/INST]", "</s> {image} {{ x }} <image>")[number % 2]
        image = f"{folder.name}/{number}.png"
        rows.append({"image": image, "question": question, "answer": LONG, "task": TASKS[number % 4]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name_client(tmp_path / "certs", CLIENT)
    return Work(tmp_path, recipe)


def name_client(folder: Path, name: str) -> None:
    """A certificate for the client of `folder`, with this common name, of the authority there."""
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    old = x509.load_pem_x509_certificate((folder / "client.pem").read_bytes())
    key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.subject)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    (folder / "client.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


def test_D12_and_D6_text_that_is_not_ours_goes_all_the_way(work: Work, bitseam: Command) -> None:
    options = ("--set", "train.steps=60", "--set", "client.rate=0.01", "--set", "server.rate=0.01")
    recipe, folder = str(work.recipe), work.folder
    with work.server(*options) as server:
        status, output = bitseam("train", recipe, *options)
        assert status == 0, output
        for shown in ("[mri] left", "[/other]", r"\x1b[2J\x1b]0;owned"):
            assert shown in output, shown
        summary = json.loads((folder / "run/client/summary.json").read_text())
        assert set(summary["tasks"]) == set(TASKS)  # kept as they are
        assert [score["correct"] for score in summary["tasks"].values()] == [2] * 4  # answers of twelve tokens
        assert summary["answers"] == [LONG] * 8

        status, output = bitseam("status", recipe, *options)
        assert status == 0, output
        status, output = bitseam("evaluate", recipe, *options, "--set", "text.max_answer_tokens=4")
        assert status == 0, output
        assert "8 right answers have more tokens than text.max_answer_tokens, 4" in output
        image = str(folder / "[img] [b]\x1b[2J" / "0.png")
        ask = ("ask", image, "is this a cat ? [/INST]", "--recipe", recipe, *options)
        status, output = bitseam(*ask)
        assert (status, LONG in output) == (0, True), output
        status, output = bitseam(*ask, "--max-new-tokens", "5000")
        assert status == 1
        assert "--max-new-tokens 5000: the server gives 512 at the most" in output
        status, output = bitseam("ask", image, "[/INST] \x1b[2J" + "cat " * 600, *ask[3:])
        assert status == 1
        assert "tokens is over text.max_tokens = 512: '[/INST] \\\\x1b[2Jcat" in output
        assert len(output) < 500
        server.send_signal(signal.SIGTERM)
        assert steady(flat(ended(server)[1]))
    records = (folder / "run/server/events.jsonl").read_text(encoding="utf-8").split("\n")
    assert {json.loads(line)["client"] for line in records if line and "client" in json.loads(line)} == {CLIENT}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--set", "[/x]\x1b[2J"), r"--set [/x]\x1b[2J: write KEY=VALUE"),
        (("--set", "[/x]=\x1b[2J"), "[/x]: unknown key"),
        (("--set", "name=[/x]\x1b[2J"), r"(got '[/x]\x1b[2J')"),
        (("--set", "text.prompt=" + "[/x] \x1b" * 9999), r"must be 'chat' or hold {image} and {question}"),
        (("--set", "client.a\n.b=1"), r"client.a\n: unknown key"),
        (("--set", "name.[/b]\n.c=1"), r"name.[/b]\n.c: name is not a table"),
        (("--plan", "[/c]\n{}.toml"), r"[/c]\n{}.toml: cannot read the recipe"),
        (("--set", "data.train=[/a] \x1b[2J.jsonl"), r"[/a] \x1b[2J.jsonl: "),
        (("--set", "text.tokenizer=[/a] \x1b[2J"), r"text.tokenizer '[/a] \\x1b[2J'"),
    ],
)
def test_D12_an_error_is_told_as_it_is(work: Work, bitseam: Command, words: tuple[str, str], complaint: str) -> None:
    status, output = bitseam("train", str(work.recipe), *words)
    assert status == 1
    assert complaint in output
    assert len(output) < 1500
    assert "Traceback" not in output
