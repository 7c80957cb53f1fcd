"""The demo's report: true in its headline, safe with what models say, and whole in one file."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bitseam.errors import DataError
from bitseam.evals.report import headline, summary_markdown, summary_table, write_html

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
    report["traffic"]["coded"]["ledger"][0]["part"] = evil
    page = Page(write_html(report, folder))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert page.text.count("<script>alert(1)</script>") >= 5


def test_answers_are_marked_in_words_as_they_are_scored(report: dict[str, Any], folder: Path) -> None:
    report["samples"] = [{**sample(1), "answer": "cat", "coded": "Cat.", "fp16": "cats"}]
    report["asked"] = []
    assert "coded Cat. ✓ right fp16 cats ✗ wrong truth cat" in Page(write_html(report, folder)).text


@pytest.mark.parametrize("coded", [461, 600])
def test_a_good_result_is_told(report: dict[str, Any], coded: int) -> None:
    report["tasks"]["position"] |= {
        "coded": {"correct": coded, "total": 1000},
        "fp16": {"correct": 461, "total": 1000},
    }
    assert headline(report) == (
        "The coded run sent 8.5 times fewer bytes, up and down together, and answered as well as fp16 "
        "or better, by its 95 % interval, on 3 of 3 tasks."
    )


@pytest.mark.parametrize(
    ("task", "coded", "fp16", "words"),
    [
        ("position", 310, 461, "on position it was below fp16's interval (31.0 % against 46.1 %)"),
        (
            "existence",
            515,
            540,
            "on existence it was inside fp16's interval, and not above chance (51.5 % against 54.0 %)",
        ),
        (
            "existence",
            505,
            510,
            "on existence it was inside fp16's interval, and neither is above chance (50.5 % against 51.0 %)",
        ),
        (
            "recognition",
            110,
            812,
            "on recognition it was below fp16's interval, and not above chance (11.0 % against 81.2 %)",
        ),
    ],
)
def test_a_bad_result_is_told(report: dict[str, Any], task: str, coded: int, fp16: int, words: str) -> None:
    report["tasks"][task] |= {"coded": {"correct": coded, "total": 1000}, "fp16": {"correct": fp16, "total": 1000}}
    assert headline(report).endswith(f"on 2 of 3 tasks; {words}.")


@pytest.mark.parametrize(("up", "words"), [(800_111_920, "2.0 times more bytes"), (267_400_000, "as many bytes")])
def test_no_saving_is_told(report: dict[str, Any], up: int, words: str) -> None:
    report["traffic"]["coded"] |= {"up_bytes": up, "down_bytes": 265_448_216}
    assert headline(report).startswith(f"The coded run sent {words}, up and down together,")


@pytest.mark.parametrize("correct", [0, 7, 50, 999, 1000])
@pytest.mark.parametrize("total", [1000, 1003, 1009])
def test_equal_runs_are_inside_each_others_interval(report: dict[str, Any], correct: int, total: int) -> None:
    """Also at none and all right, where the interval ends at the accuracy itself."""
    same = {"correct": correct + (total - 1000 if correct == 1000 else 0), "total": total}
    report["tasks"] = {"recognition": {"coded": same, "fp16": same, "chance": 0.1}}
    assert "inside fp16's interval" in summary_markdown(report)


def test_the_markdown_has_the_reports_numbers(report: dict[str, Any]) -> None:
    lines = summary_markdown(report).splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:] for line in lines[2:]}
    for way in ("up", "down"):
        a, b = (report["traffic"][v][f"{way}_bytes"] for v in ("coded", "fp16"))
        assert cells[f"bytes {way}"] == [f"{a / 1e6:.2f} MB", f"{b / 1e6:.1f} MB", f"{b / a:.2f} times fewer"]
    assert cells["bytes both ways"] == ["62.99 MB", "532.8 MB", "8.46 times fewer"]
    assert cells["on the socket, TLS and all"] == ["64.61 MB", "534.4 MB", "8.27 times fewer"]
    assert cells["position, chance 10.0 %"] == [
        "45.2 % (42.1 to 48.3)",
        "46.1 % (43.0 to 49.2)",
        "inside fp16's interval",
    ]
    assert cells["training"] == ["412 s", "432 s", "1.05 times shorter"]
    assert cells["peak memory, server"] == ["901.1 MB", "903.8 MB", "about the same"]
    assert len({line.count("|") for line in lines}) == 1


def test_the_terminals_table_is_the_markdowns(report: dict[str, Any]) -> None:
    report["tasks"]["[red]odd|task"] = report["tasks"]["position"]
    console = Console(width=200)
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


def test_a_run_of_one_step_has_a_page(report: dict[str, Any], folder: Path) -> None:
    report["curves"] = {variant: {"step": [1], "loss": [2.5]} for variant in ("coded", "fp16")}
    assert "at the end 2.500" in Page(write_html(json.loads(json.dumps(report)), folder)).text
