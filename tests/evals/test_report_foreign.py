"""The report of a run whose questions, answers and tasks are not kind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report import REPORT, Page, _quick, answered, folder  # noqa: F401  (fixtures)

from bitseam.errors import printable
from bitseam.evals.report import summary_markdown, summary_table, write_html

HOSTILE = (
    "a | b", "two\nlines\r\nof | it", "\\", "\\|", "</td></table><script>x</script>", "[/x] [red]y", "\x1b[2J\x07",
    "a\u202eb", "{{ 7 * 7 }} {% raw %}", "<!-- ", "\ud83d", "&lt;b&gt;", "javascript:alert(1)", "']\"; x=`1`",
)  # fmt: skip


@pytest.fixture(params=HOSTILE)
def hostile(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The text, and a report with it wherever a run puts text of others."""
    text, report = request.param, copy.deepcopy(REPORT)
    report["tasks"] = {text: report["tasks"]["position"], **report["tasks"]}
    report["samples"][0] |= {"question": text, "answer": text, "coded": text, "fp16": text, "task": text}
    report["asked"][0] |= {"question": text, "said": text}
    report["commands"] = report["versions"]["torch"] = report["recipe"] = text
    report["traffic"]["coded"]["ledger"][0]["part"] = text
    return text, answered(report)


def test_D12_the_page_shows_what_is_written(hostile: tuple[str, dict[str, Any]], folder: Path) -> None:  # noqa: F811
    text, report = hostile
    plain = Page(write_html(answered(copy.deepcopy(REPORT)), folder))
    page = Page(write_html(report, folder))
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    names = {name for _, attributes in page.tags for name in attributes}
    assert names == {name for _, attributes in plain.tags for name in attributes}
    assert printable(source, None, lines=True) == source
    shown = " ".join(printable(text, None, lines=True).split())
    assert page.text.count(shown) >= 8


def test_D12_the_tables_have_a_row_and_cells_of_it(hostile: tuple[str, dict[str, Any]]) -> None:
    text, report = hostile
    lines = summary_markdown(report).split("\n")
    assert len(lines) == len(summary_markdown(REPORT).split("\n")) + 1
    for line in lines[:-1]:
        assert printable(line, None) == line
        assert bars(line) == 5
        assert "<" not in line
    console = Console(width=400)
    with console.capture() as captured:
        console.print(summary_table(report))
    assert f"{printable(text, None)}, chance 10.0 %" in captured.get()


def bars(line: str) -> int:
    """The bars that end a cell, as GitHub's Markdown reads a row: a backslash takes the next character with it."""
    count, characters = 0, iter(line)
    for character in characters:
        if character == "\\":
            next(characters, None)
        count += character == "|"
    return count
