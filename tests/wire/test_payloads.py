"""The tables of docs/payloads.md say what the code does: codecs, the members of their JSON, packing, symbols, files."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitseam.codecs import BUILT_IN, Codec, codec_from_config
from bitseam.codecs.packing import pack
from bitseam.errors import CodecError
from bitseam.text.symbols import _FIRST, _FURTHER, _HERE, _HIDDEN, _IDS, _TURN, TextBatch, text_message

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "payloads.md").read_text()
LEAST: dict[str, dict[str, Any]] = {  # of the members without a default
    "uniform": {"levels": 4, "clip": 1.0},
    "entropy-uniform": {"levels": 4, "clip": 1.0},
    "stochastic": {"levels": 4},
    "blockwise-int": {"bits": 4},
    "nf": {"bits": 4},
    "fp8": {"format": "e4m3"},
    "top-k": {"share": 0.5},
    "randomized-top-k": {"share": 0.5},
    "splitfc": {"bits": 4},
    "delta": {"first": "fp16", "inner": {"id": "nf", "bits": 4}, "capacity": 1000},
}


def tables(heading: str) -> list[list[list[str]]]:
    """The rows of each table under a heading, without its head."""
    body = re.split(r"^#+ ", PAGE.partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    found = re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in t.splitlines()[2:]] for t in found]


CODECS, MEMBERS = tables("Codecs")


def build(codec_id: str, **members: Any) -> Codec:
    return codec_from_config({"id": codec_id, **LEAST.get(codec_id, {}), **members})


def test_every_codec() -> None:
    assert sorted(row[0] for row in CODECS) == sorted(BUILT_IN)
    for codec_id, _, length in CODECS:
        assert (length == "by the shape") == build(codec_id).fixed_length, codec_id


def test_every_member_with_its_default() -> None:
    due = {
        (codec_id, field.name): None if field.default is MISSING else field.default
        for codec_id, codec in BUILT_IN.items()
        for field in fields(codec)
    }
    told = {(codec_id, name): json.loads(default) if default else None for codec_id, name, _, _, default in MEMBERS}
    assert told == {key: [] if default == () else default for key, default in due.items()}
    for codec_id, name, kind, _, _ in MEMBERS:
        value = build(codec_id).config()[name]
        assert (
            type(value).__name__
            in {
                "integer": ["int"],
                "number": ["float"],
                "string": ["str"],
                "integer or string": ["int", "str"],
                "rows of integers": ["tuple"],
                "codec": ["dict"],
            }[kind]
        )


@pytest.mark.parametrize("row", MEMBERS, ids=lambda row: f"{row[0]} {row[1]}")
def test_ranges(row: list[str]) -> None:
    codec_id, name, kind, told, _ = row
    inside: list[Any] = re.findall(r'"([\w-]+)"', told)
    outside: list[Any] = ["", None, [1], "other"]
    for one in re.findall(r"(?<![\d.])[\d.]+(?![\d.])", re.sub(r'"[^"]*"', "", told)):
        value = json.loads(one)
        open_end = re.search(rf"(over|under) {re.escape(one)}\b", told)
        (outside if open_end else inside).append(value)
    numbers = [value for value in inside + outside if type(value) in (int, float)]
    if numbers and kind != "rows of integers":
        step = 1 if "integer" in kind else 1e-9
        outside.append(min(numbers) - step)
        if "or more" not in told:
            outside.append(max(numbers) + step)
    if "odd" in told:
        outside.append(2)
    if kind == "integer":
        outside += [4.0, True]
    if kind == "rows of integers":
        inside = [[]]
    assert inside
    for value in inside:
        build(codec_id, **{name: value})
    for value in outside:
        with pytest.raises(CodecError):
            build(codec_id, **{name: value})


def test_packing() -> None:
    (rows,) = tables("Packing")
    for levels, indices, payload in rows:
        assert pack(np.array(indices.split(), np.int64), int(levels)).hex() == payload


def test_symbols() -> None:
    (rows,) = tables("Symbols of text")
    told = [row[0] for row in rows]
    assert told == [*map(str, (_FIRST, _FURTHER, _HERE, _TURN, _HIDDEN)), f"{_IDS} + id"]


def test_example_of_symbols() -> None:
    told = re.search(r"^    (0 6 2 [\d ]+)$", PAGE, re.MULTILINE)
    assert told
    batch = TextBatch(
        ids=torch.tensor([1, 17, 250, 2, 1, 18, 2]),
        lengths=torch.tensor([4, 3]),
        image_at=torch.tensor([1, 1]),
        image=torch.tensor([0, 0]),
        answers=torch.tensor([0, 0, 1, 1, 0, 0, 1]).bool(),
    )
    raw = zlib.decompress(text_message(batch, 32000).symbols, wbits=-15)
    assert np.frombuffer(raw, "<u2").tolist() == [int(symbol) for symbol in told[1].split()]


def test_members_and_files_of_vectors() -> None:
    members, files = tables("Test vectors")
    names = {row[0] for row in files} - {"ID.json"}
    assert {path.name for path in (ROOT / "vectors").iterdir()} == names | {f"{codec_id}.json" for codec_id in BUILT_IN}
    used = {
        member
        for codec_id in BUILT_IN
        for vector in json.loads((ROOT / "vectors" / f"{codec_id}.json").read_text())["vectors"]
        for member in vector
    }
    assert used == {row[0] for row in members}
