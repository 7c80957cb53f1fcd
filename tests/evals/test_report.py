"""The demo's report: true in its headline, safe with what models say, and whole in one file."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marked import counted, marks
from PIL import Image
from rich.console import Console

from bitseam.errors import DataError
from bitseam.evals import compare
from bitseam.evals.marks import packed
from bitseam.evals.report import headline, remarks, summary_markdown, summary_table, write_html

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def ledger(up: int, down: int, codecs: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows that add up to `up` and `down` bytes."""
    values = 900 * 32 * 16 * 288
    rows = [
        ("up", "Forward", f"image ({codecs[0]})", 900, up - 1_911_052, 2 * values),
        ("down", "Backward", f"image ({codecs[1]})", 900, down - 27_416, 2 * values),
        ("up", "Forward", "rest", 900, 1_908_000, 1_908_000),
        ("down", "Backward", "rest", 900, 27_000, 27_000),
        ("up", "Calibrate", "rest", 1, 2_312, 2_312),
        ("up", "Hello", "rest", 1, 740, 740),
        ("down", "Welcome", "rest", 1, 416, 416),
    ]
    names = ("direction", "kind", "part", "messages", "bytes", "fp16_bytes")
    return [dict(zip(names, row, strict=True)) for row in rows]


def traffic(up: int, down: int, codecs: tuple[str, str]) -> dict[str, Any]:
    rows = ledger(up, down, codecs)
    return {"up_bytes": up, "down_bytes": down, "socket_bytes": up + down + 1_620_000, "steps": 900, "ledger": rows}


def curve(seed: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    loss = [0.45 + 3 * math.exp(-step / 120) + 0.12 * rng.standard_normal() for step in range(1, 901)]
    return {"step": list(range(1, 901)), "loss": loss}


def sample(number: int) -> dict[str, str]:
    task = ("recognition", "position", "existence")[number % 3]
    image = f"test/{'photo' if task == 'recognition' else 'mosaic'}-{number:05d}.png"
    question = ("What is in the picture?", "What is in the bottom left?", "Is there a deer?")[number % 3]
    truth = ("yes", "no")[number % 2] if task == "existence" else CLASSES[number % 10]
    wrong = "no" if truth == "yes" else "horse"
    coded, fp16 = (truth if number % 4 else wrong), (truth.capitalize() + "." if number % 5 else wrong)
    return {"image": image, "task": task, "question": question, "answer": truth, "coded": coded, "fp16": fp16}


REPORT: dict[str, Any] = {
    "traffic": {
        "coded": traffic(35_101_420, 27_891_236, ("uniform", "stochastic")),
        "fp16": traffic(267_331_852, 265_448_216, ("fp16", "fp16")),
    },
    "tasks": {
        "recognition": {
            "coded": {"correct": 801, "total": 1000},
            "fp16": {"correct": 812, "total": 1000},
            "chance": 0.1,
        },
        "position": {"coded": {"correct": 452, "total": 1000}, "fp16": {"correct": 461, "total": 1000}, "chance": 0.1},
        "existence": {"coded": {"correct": 733, "total": 1000}, "fp16": {"correct": 724, "total": 1000}, "chance": 0.5},
    },
    "seconds": {"coded": 412.3, "fp16": 431.9},
    "memory": {
        "coded": {"client": 812_330_000, "server": 901_120_000},
        "fp16": {"client": 815_640_000, "server": 903_770_000},
    },
    "parameters": {"client": 23_540_000, "server": 15_620_000},
    "curves": {"coded": curve(1), "fp16": curve(2)},
    "samples": [sample(number) for number in range(12)],
    "asked": [{**sample(number), "said": sample(number)["answer"]} for number in (0, 1, 2)],
    "commands": [
        "bitseam serve recipes/demo.toml --set out=runs/demo/coded",
        "bitseam train recipes/demo.toml --set out=runs/demo/coded",
    ],
    "versions": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "grpcio": "1.80.0"},
    "machine": {"cpu": "A Processor", "cores": 2, "memory_bytes": 25_000_000_000, "os": "Linux"},
    "threads": 1,
    "commit": "abc1234",
    "date": "2026-01-02T03:04:05+00:00",
    "recipe": 'name = "demo"\nseed = 0\n',
}


def answered(report: dict[str, Any], seeds: int = 1) -> dict[str, Any]:
    """The report with marks of its counts, shared among so many seeds."""
    sides = []
    for number, variant in enumerate(("coded", "fp16")):
        right: dict[int, dict[str, str]] = {seed: {} for seed in range(seeds)}
        for task, scores in report["tasks"].items():
            correct, total = (scores[variant][part] for part in ("correct", "total"))
            for seed in right:
                own = correct // seeds + (seed < correct % seeds)
                right[seed][task] = counted(own, total // seeds, 10 * number + seed)
        sides.append(marks(variant, right))
    return report | {"marks": packed(sides)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_DRAWS", 200)


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(REPORT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the report's pictures, noise of 32 or 64 pixels."""
    rng = np.random.default_rng(0)
    (tmp_path / "test").mkdir()
    for row in REPORT["samples"]:
        side = 32 if "photo" in row["image"] else 64
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(tmp_path / row["image"])
    return tmp_path


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_asks_the_network_for_nothing(report: dict[str, Any], folder: Path) -> None:
    path = write_html(report, folder)
    source, page = path.read_text(encoding="utf-8"), Page(path)
    assert path == folder / "report.html"
    assert not re.search(r"https?://|url\(|@import", source)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    references = [value for _, attrs in page.tags for key in ("src", "href") if (value := attrs.get(key))]
    assert len(references) == 15
    assert all(value.startswith("data:image/png;base64,") for value in references)


def test_the_page_holds_every_figure(report: dict[str, Any], folder: Path) -> None:
    text = Page(write_html(report, folder)).text
    traffic = ("35.10 MB", "267.3 MB", "27.89 MB", "265.4 MB", "8.46 times", "8.27 times", "1,908,000", "2.00 bits up")
    rest = ("1.68 bits down", "80.1 %", "801 of 1,000", "812.3 MB", "abc1234", 'name = "demo"')
    for words in (*traffic, *rest):
        assert words in text, words


def test_what_a_model_says_stays_text(report: dict[str, Any], folder: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    report["samples"][0]["coded"] = report["asked"][0]["said"] = report["recipe"] = evil
    report["tasks"] = {evil: report["tasks"]["position"]}
    report = answered(report)
    report["traffic"]["coded"]["ledger"][0]["part"] = evil
    page = Page(write_html(report, folder))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_answers_are_marked_in_words_as_they_are_scored(report: dict[str, Any], folder: Path) -> None:
    report["samples"] = [{**sample(1), "answer": "cat", "coded": "Cat.", "fp16": "cats"}]
    report["asked"] = []
    assert "coded Cat. ✓ right fp16 cats ✗ wrong truth cat" in Page(write_html(report, folder)).text


def given(report: dict[str, Any], task: str, coded: int, fp16: int) -> None:
    report["tasks"][task] |= {"coded": {"correct": coded, "total": 1000}, "fp16": {"correct": fp16, "total": 1000}}


BEGINS = "The coded run sent 8.5 times fewer bytes than fp16, up and down together"


def test_counts_alone_have_no_verdict(report: dict[str, Any]) -> None:
    assert headline(report) == f"{BEGINS}; the mean accuracy of 3 tasks was 66.2 % coded and 66.6 % fp16."
    assert remarks(report) == [
        "The report has counts of right answers alone, so that the difference of accuracies cannot be judged."
    ]
    for line in summary_markdown(report).splitlines():
        assert not re.search("inferior|McNemar|inside|above fp16|below fp16", line)


@pytest.mark.parametrize(
    ("coded", "verdict"),
    [
        (900, "non-inferior to fp16 at a margin of 1 point"),
        (461, "not shown to be non-inferior to fp16 at a margin of 1 point"),
        (100, "inferior to fp16 by more than 1 point"),
    ],
)
def test_answers_have_a_verdict_in_every_form(report: dict[str, Any], folder: Path, coded: int, verdict: str) -> None:
    given(report, "position", coded, 461)
    report = answered(report)
    points = (801 - 812 + coded - 461 + 733 - 724) / 30
    told = rf"{re.escape(f'{points:+.1f}')} points \([+-]\d+\.\d to [+-]\d+\.\d\)"
    of_interval = told.replace(r" \(", ", 95 % interval ").removesuffix(r"\)")
    assert re.fullmatch(rf"{BEGINS}, and is {verdict} on the mean of 3 tasks: {of_interval}\.", headline(report))
    row = next(line for line in summary_markdown(report).splitlines() if line.startswith("| mean of the tasks"))
    assert re.search(rf"\| {told}, McNemar's p (under )?0\.\d+; {verdict}, one seed \|$", row)
    text = Page(write_html(report, folder)).text
    assert f"On the mean of the tasks coded is {verdict}." in text
    assert text.count("One seed of each side: the intervals are over questions alone") == 2


def test_several_seeds_have_their_spread_and_no_caution(report: dict[str, Any], folder: Path) -> None:
    report = answered(report, seeds=4)
    assert remarks(report) == []
    lines = summary_markdown(report).splitlines()
    assert any(re.search(r"McNemar's p 0\.\d+ to [01]\.\d+; not shown .*, 4 seeds \|$", line) for line in lines)
    spread = next(line for line in lines if line.startswith("| its standard deviation over seeds | "))
    assert re.search(r"\| \d\.\d\d points \| \d\.\d\d points \|  \|$", spread)
    text = Page(write_html(report, folder)).text
    assert "over 4 seeds and the photographs" in text
    assert "One seed" not in text


@pytest.mark.parametrize(
    ("coded", "fp16", "words"),
    [
        (515, 540, "On existence, coded is not above chance (51.5 % against 54.0 %)."),
        (505, 510, "On existence, neither is above chance (50.5 % against 51.0 %)."),
    ],
)
def test_tasks_not_above_chance_are_named(report: dict[str, Any], coded: int, fp16: int, words: str) -> None:
    """To be as good as chance is no result, whatever the comparison says."""
    given(report, "existence", coded, fp16)
    for found in (report, answered(report)):
        assert remarks(found)[1:] == [words]
        row = next(line for line in summary_markdown(found).splitlines() if line.startswith("| existence"))
        assert row.endswith(words.removeprefix("On existence, ").split(" (")[0] + " |")


def test_marks_must_be_those_that_were_counted(report: dict[str, Any]) -> None:
    report = answered(report)
    report["tasks"]["position"]["coded"]["correct"] = 453
    words = "on position, coded has 453 right answers of 1000 in `tasks`, and 452 of 1000 in `marks`"
    with pytest.raises(DataError, match=words):
        headline(report)
    del report["tasks"]["position"]
    with pytest.raises(DataError, match="only one of `marks` and `tasks` has position"):
        headline(report)
    del report["marks"]["right"]["fp16"]
    with pytest.raises(DataError, match="`marks` are of coded; they must be of coded and fp16"):
        headline(report)


@pytest.mark.parametrize(
    ("up", "words"), [(800_111_920, "2.0 times more bytes than"), (267_400_000, "as many bytes as")]
)
def test_no_saving_is_told(report: dict[str, Any], up: int, words: str) -> None:
    report["traffic"]["coded"] |= {"up_bytes": up, "down_bytes": 265_448_216}
    assert headline(report).startswith(f"The coded run sent {words} fp16, up and down together;")


def test_the_markdown_has_the_reports_numbers(report: dict[str, Any]) -> None:
    lines = summary_markdown(report).splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:] for line in lines[2:]}
    for way in ("up", "down"):
        a, b = (report["traffic"][v][f"{way}_bytes"] for v in ("coded", "fp16"))
        assert cells[f"bytes {way}"] == [f"{a / 1e6:.2f} MB", f"{b / 1e6:.1f} MB", f"{b / a:.2f} times fewer"]
    assert cells["bytes both ways"] == ["62.99 MB", "532.8 MB", "8.46 times fewer"]
    assert cells["on the socket, TLS and all"] == ["64.61 MB", "534.4 MB", "8.27 times fewer"]
    assert cells["position, chance 10.0 %"] == ["45.2 % (42.1 to 48.3)", "46.1 % (43.0 to 49.2)", ""]
    assert cells["mean of the tasks"] == ["66.2 %", "66.6 %", ""]
    assert cells["training"] == ["412 s", "432 s", "1.05 times shorter"]
    assert cells["peak memory, server"] == ["901.1 MB", "903.8 MB", "about the same"]
    assert len({line.count("|") for line in lines}) == 1


def test_the_terminals_table_is_the_markdowns(report: dict[str, Any]) -> None:
    report["tasks"]["[red]odd|task"] = report["tasks"]["position"]
    report = answered(report)
    console = Console(width=300)
    with console.capture() as captured:
        console.print(summary_table(report))
    shown = [
        [cell.strip() for cell in line.strip("│┃").split("│")] for line in captured.get().splitlines() if "│" in line
    ]
    lines = summary_markdown(report).splitlines()[2:]
    cells = [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert shown == cells


def test_a_socket_that_was_not_counted_is_left_out(report: dict[str, Any], folder: Path) -> None:
    report["traffic"]["fp16"]["socket_bytes"] = None
    assert "on the socket" not in summary_markdown(report)
    assert "was not counted on this system" in Page(write_html(report, folder)).text


@pytest.mark.parametrize("field", sorted(REPORT))
def test_a_missing_field_is_named(report: dict[str, Any], folder: Path, field: str) -> None:
    del report[field]
    with pytest.raises(DataError, match=field):
        write_html(report, folder)


def test_a_missing_image_is_named(report: dict[str, Any], folder: Path) -> None:
    (folder / report["samples"][4]["image"]).unlink()
    with pytest.raises(DataError, match=report["samples"][4]["image"]):
        write_html(report, folder)


def test_the_page_fits_a_phone_and_paper(report: dict[str, Any], folder: Path) -> None:
    """Wide tables scroll by themselves; on paper nothing has to be scrolled or opened, or is white on black."""
    path = write_html(answered(report), folder)
    source, page = path.read_text(encoding="utf-8"), Page(path)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    for before, (tag, attrs) in pairwise(page.tags):
        if tag == "table" and "loose" not in (attrs.get("class") or ""):
            assert "scroll" in (before[1].get("class") or "")
    _, printed = source.split("@media print {")
    for rule in ("--paper: #fff", "overflow: visible", "white-space: pre-wrap", "details::details-content", "break-"):
        assert rule in printed


def test_a_run_of_one_step_has_a_page(report: dict[str, Any], folder: Path) -> None:
    report["curves"] = {variant: {"step": [1], "loss": [2.5]} for variant in ("coded", "fp16")}
    assert "at the end 2.500" in Page(write_html(json.loads(json.dumps(report)), folder)).text
