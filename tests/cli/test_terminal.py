"""What others wrote, where people and programs read it: terminal, log lines, metrics, and a peer's refusal."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from conftest import Tiny, make_recipe
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from rich.console import Console
from rich.table import Table

from bitseam.cli.client import show_ledger
from bitseam.cli.status import show_status
from bitseam.console import Terminal, log_handler, plain
from bitseam.errors import RefusedError, printable
from bitseam.serve.events import event_log
from bitseam.sessions.ledger import Ledger
from bitseam.sessions.peer import Peer
from bitseam.transport import memory_pair
from bitseam.wire import Limits
from bitseam.wire import messages_pb2 as pb

HOSTILE = (
    "[/INST]", "[mri] left", "[bold red]x[/]", ":smile:", "\x1b[2J\x1b]8;;file:///\x07", "a\rb", "a\u202eb", "\x9b2J",
    "\\[b]", "{x} %s", "\ud83d", "a\u2028b\x85c", "\x00\x7f", "https://example.org/[b]", "1.5 None 'quoted'",
)  # fmt: skip
STEADY = set("\n\t")


def terminal(width: int = 200) -> tuple[Terminal, io.StringIO]:
    """One that has colours and obeys what it is sent."""
    file = io.StringIO()
    return Terminal(file=file, force_terminal=True, color_system="truecolor", width=width), file


@pytest.mark.parametrize("text", HOSTILE)
def test_D12_a_terminal_shows_what_is_written(text: str) -> None:
    shown = printable(text, None)
    console, file = terminal()
    console.print(text, plain(text), soft_wrap=True)
    assert file.getvalue() == f"{printable(text, None, lines=True)} {shown}\n"  # and no colour in it
    console, file = terminal()
    table = Table(text, title=text)
    table.add_row(text)
    table.add_row(plain(text))
    console.print(table)
    assert file.getvalue().count(shown) == 4
    assert [len(line) for line in Terminal(file=io.StringIO(), width=200).render_lines(table)]
    for other in (console, Console(file=io.StringIO(), width=200)):  # `plain` needs no console of ours
        with other.capture() as captured:
            other.print(plain(text))
        assert captured.get().rstrip("\n") == shown


def test_D12_a_rule_is_steered_by_nobody() -> None:
    console, file = terminal()
    console.rule("[/x] \x07")
    assert r"[/x] \x07" in file.getvalue()


@pytest.mark.parametrize("text", [*HOSTILE, "two\nlines"])
def test_D12_a_log_record_is_one_line(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    handler = log_handler()
    file = io.StringIO()
    handler.console.file = file  # type: ignore[attr-defined]
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("client %s: %s", text, text)
    (line,) = file.getvalue().splitlines()
    assert f"client {printable(text, None)}: {printable(text, None)}" in line
    try:
        raise ValueError(text)
    except ValueError:
        logger.exception("session over")
    assert set(file.getvalue()) <= {c for c in file.getvalue() if printable(c) == c} | STEADY
    assert "Traceback" in file.getvalue()


@pytest.mark.parametrize("text", [*HOSTILE, "two\nlines"])
def test_D12_an_event_is_a_line_of_json_whatever_it_says(text: str, tmp_path: Path) -> None:
    with event_log(tmp_path / "events.jsonl"):
        logging.getLogger("bitseam.test").warning("client %s", text)
    (line,) = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["message"] == f"client {text}"


CLIENTS = ("[/clinic] \x1b[31m", 'a"b\\n\n}{', "a\u2028b\r", "x, y=1")


def test_D12_a_clients_name_stays_one_label_and_one_cell(tiny: Tiny, tmp_path: Path) -> None:
    registry = CollectorRegistry()
    session = Gauge("bitseam_session", "", ["client", "session", "purpose"], registry=registry)
    names = ("bitseam_client_step", "bitseam_steps_total", "bitseam_fp16_bytes_total")
    others = [Gauge(name, "", ["client"], registry=registry) for name in names]
    crossed = Gauge("bitseam_bytes_total", "", ["client", "direction"], registry=registry)
    Gauge("bitseam_step", "", registry=registry).set(3)
    for number, client in enumerate(CLIENTS, 1):
        session.labels(client, "7", "train").set(1)
        crossed.labels(client, "up").set(number * 1e6)
        for gauge in others:
            gauge.labels(client).set(5)
    server, _ = start_http_server(0, "127.0.0.1", registry)
    try:
        note = tmp_path / "server" / "metrics.json"
        note.parent.mkdir()
        note.write_text(json.dumps({"metrics": f"http://127.0.0.1:{server.server_port}/metrics"}))
        console, file = terminal()
        show_status(make_recipe(tiny, out=str(tmp_path)), console)
    finally:
        server.shutdown()
    for number, client in enumerate(CLIENTS, 1):
        (row,) = (line for line in file.getvalue().splitlines() if f" {number}.000 " in line)
        assert f" {printable(client, None)} " in row


def test_D12_the_ledgers_parts_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    console, file = terminal()
    monkeypatch.setattr("bitseam.cli.client.stdout", console)
    row = {"direction": "up", "kind": "Ask", "part": "image ([/codec]\x1b[2J)", "messages": 1}
    ledger = Ledger([])
    ledger.restore([row | {"bytes": 1, "fp16_bytes": 2}])
    show_ledger(ledger, None)
    assert r"image ([/codec]\x1b[2J)" in file.getvalue()


def test_D12_a_servers_refusal_is_shown_and_not_obeyed() -> None:
    ours, theirs = memory_pair()
    client, server = Peer(ours, "client", Ledger([])), Peer(theirs, "server", Ledger([]), Limits())
    client.send(pb.Hello(version=1, purpose=pb.ASK))
    server.receive()
    difference = pb.Difference(field="a\x1b[2J", client="[/b]", server="x\ny")
    server.send(pb.Refuse(fault=pb.TERMS_DIFFER, reason="no\r\x1b[31m [/x]", differences=[difference]))
    with pytest.raises(RefusedError) as caught:
        client.receive()
    first, second = str(caught.value).split("\n")
    assert first.endswith(r": no\r\x1b[31m [/x]")
    assert second == r"  a\x1b[2J: client has [/b], server has x\ny"


def test_a_goodbye_can_be_said_of_any_error() -> None:
    ours, theirs = memory_pair()
    client, server = Peer(ours, "client", Ledger([])), Peer(theirs, "server", Ledger([]), Limits())
    client.send(pb.Hello(version=1, purpose=pb.ASK))
    server.receive()
    server.send(pb.Welcome(session=b"x" * 16, run=b"y" * 16, limits=Limits().told()))
    client.receive()
    client.say_goodbye("DataError: lone \ud83d " + "\x1b" * 500)
    assert server.receive().reason.startswith(r"DataError: lone \ud83d \x1b")
