"""Rows as people bring them: every bad one is named by file, line and field, and what is only unusual is read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitseam.data.rows import Row, read_rows, scan_rows, write_rows
from bitseam.errors import DataError


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "0.png", "question": "a", "answer": "b"} | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "0.png")
    return tmp_path


def refusal(folder: Path, *lines: str | bytes) -> str:
    """What is said against a file of a good row and `lines`."""
    path = folder / "rows.jsonl"
    encoded = [line if isinstance(line, bytes) else line.encode() for line in (json.dumps(row()), *lines)]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    with pytest.raises(DataError) as told:
        read_rows(path)
    return str(told.value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "a row is an object"),
        ('{"question": "a", "answer": "b"}', "image is missing"),
        ('{"image": "0.png", "answer": "b"}', "question is missing"),
        ('{"image": "0.png", "question": "a"}', "answer is missing"),
        (json.dumps(row(answer=" ")), "answer is missing"),
        (json.dumps(row(answer=None)), "answer is missing"),
        (json.dumps(row(image="9.png")), "9.png does not exist"),
        (json.dumps(row(image=".")), "is not a file"),
        (json.dumps(row(image="0.png/1.png")), "cannot be reached: Not a directory"),
        (json.dumps(row(image=["0.png", "1.png"])), "image is not one text but ['0.png', '1.png']"),
        (json.dumps(row(answer=3)), "answer is not text but 3: write it in quotes"),
        (json.dumps(row(answer=True)), "answer is not text but True"),
        (json.dumps(row(task=7)), "task is not text but 7"),
        ('{"image": "0.png", "question": "a", "answer": NaN}', "NaN is no number of JSON"),
        ('{"image": "0.png", "question": "a", "answer": "b", "answer": "c"}', "'answer' stands in it twice"),
        ('{"image": "0.png", "question": "a", "answer": ' + "9" * 5000 + "}", "not JSON that can be read"),
        ("[" * 100_000, "not JSON that can be read"),
        (b'{"image": "0.png", "question": "\xff", "answer": "b"}', "not UTF-8: byte 0xff at place 33"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(folder: Path, line: str | bytes, complaint: str) -> None:
    told = refusal(folder, line)
    assert told.startswith(f"{folder}/rows.jsonl:2: ")
    assert complaint in told
    assert len(told) < 300 + len(str(folder))
    assert "\n" not in told


def test_all_bad_rows_are_named_at_once_and_many_are_counted(folder: Path) -> None:
    told = refusal(folder, "{", json.dumps(row()), json.dumps(row(answer=3)))
    assert [line.split(": ")[0].removeprefix(f"{folder}/") for line in told.splitlines()] == [
        "rows.jsonl:2",
        "rows.jsonl:4",
    ]
    told = refusal(folder, *["{"] * 105)
    assert len(told.splitlines()) == 21
    assert told.endswith("and 85 more")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\x1e", "\t"])
def test_D9_only_a_line_feed_ends_a_line(folder: Path, separator: str) -> None:
    question = f"a{separator}b"
    for text in (json.dumps(row(question=question), ensure_ascii=False), json.dumps(row(question=question))):
        # Control characters as they are, where json.dumps would escape them.
        text = text.replace(json.dumps(separator)[1:-1], separator)
        (folder / "rows.jsonl").write_bytes(f"{text}\r\n\r\n{text}".encode())
        rows = read_rows(folder / "rows.jsonl")
        assert [(r.question, r.line) for r in rows] == [(question, 1), (question, 3)]


@pytest.mark.parametrize("field", ["image", "question", "answer", "task"])
@pytest.mark.parametrize("text", ["x \ud83d", "\udc00 x", "\ude00\ud83d"])
def test_D10_half_of_a_surrogate_pair_is_named(folder: Path, field: str, text: str) -> None:
    told = refusal(folder, json.dumps(row(**{field: text})))
    assert f"rows.jsonl:2: {field} has half of a surrogate pair" in told
    told.encode()  # can be printed
    whole = json.dumps(row(question="\U0001f600"))  # a pair, as two escapes
    assert "\\ud83d\\ude00" in whole
    (folder / "rows.jsonl").write_text(whole)
    assert read_rows(folder / "rows.jsonl")[0].question == "\U0001f600"


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        ("data:image/png;base64," + "A" * 5000, "image is a data URI, 'data:image/png;base64,AAA"),
        ("A" * 5000, "cannot be reached: File name too long"),
        ("/".join("AB" * 3000), "cannot be reached: File name too long"),
        ("0.png\0", "cannot be reached: embedded null byte"),
    ],
)
def test_D11_what_is_no_path_is_named_and_shortened(folder: Path, image: str, complaint: str) -> None:
    told = refusal(folder, json.dumps(row(image=image)))
    assert "rows.jsonl:2: image" in told
    assert complaint in told
    assert len(told) < 400 + len(str(folder))


def test_a_byte_order_mark_is_no_part_of_the_first_row(folder: Path) -> None:
    (folder / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode())
    assert read_rows(folder / "rows.jsonl") == [Row(folder / "0.png", "a", "b")]


@pytest.mark.parametrize(
    ("whole", "complaint"),
    [
        (json.dumps([row(), row()], indent=1).encode(), "is one JSON array: write one object a line"),
        (json.dumps(row()).encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (gzip.compress(json.dumps(row()).encode(), mtime=0), "is compressed, or a table of another kind"),
        (b"PAR1\x15\x04\n\x15", "is compressed, or a table of another kind"),
        (b"\n", "no rows in it"),
    ],
)
def test_a_file_that_is_no_json_lines_is_told_in_one_line(folder: Path, whole: bytes, complaint: str) -> None:
    (folder / "rows.jsonl").write_bytes(whole)
    with pytest.raises(DataError, match=r"rows.jsonl: " + complaint):
        read_rows(folder / "rows.jsonl")


@pytest.mark.parametrize("name", ["absent.jsonl", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / name)


def test_rows_round_trip(folder: Path) -> None:
    rows = [Row(folder / "0.png", "what?", "a cat", "cats")]
    write_rows(folder / "rows.jsonl", rows)
    assert read_rows(folder / "rows.jsonl") == rows


def test_equal_images_and_short_texts_are_one_object(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("\n".join([json.dumps(row())] * 2))
    (one, other), bad = scan_rows(folder / "rows.jsonl")
    assert bad == []
    assert one.image is other.image
    assert one.answer is other.answer
