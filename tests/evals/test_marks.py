"""Marks: right and wrong answers by seed and task, kept as strings, and refused where they do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from marked import marks

from bitseam.data.rows import Row
from bitseam.errors import DataError
from bitseam.evals.marks import Marks, joined, mark, packed, same_questions, unpacked

ROWS = [
    Row(Path("a.png"), "What is it?", "cat", "naming"),
    Row(Path("b.png"), "What is it?", "dog", "naming"),
    Row(Path("a.png"), "Is it a cat?", "yes", "existence"),
]
SIDE = mark("coded", 3, ROWS, ["Cat.", "cat", "yes"])


def test_answers_are_marked_in_the_order_of_the_rows() -> None:
    assert SIDE.right == {3: {"naming": "10", "existence": "1"}}
    assert SIDE.images == {"naming": [0, 1], "existence": [0]}
    assert SIDE.of("naming").tolist() == [[1, 0]]


@pytest.mark.parametrize("part", [{"image": Path("c.png")}, {"question": "?"}, {"answer": "no"}, {"task": "other"}])
def test_other_questions_have_another_digest(part: dict[str, Any]) -> None:
    other = mark("fp16", 3, [ROWS[0], ROWS[1], replace(ROWS[2], **part)], ["cat", "dog", "yes"])
    assert other.questions != SIDE.questions
    assert mark("fp16", 4, ROWS, ["", "", ""]).questions == SIDE.questions


def test_where_the_images_lie_does_not_matter() -> None:
    moved = [replace(row, image=Path("elsewhere") / row.image) for row in ROWS]
    same_questions(SIDE, mark("fp16", 0, moved, ["cat", "dog", "yes"]))


def test_an_answer_too_few_is_refused() -> None:
    with pytest.raises(DataError, match="coded, seed 3: 2 answers to 3 questions"):
        mark("coded", 3, ROWS, ["cat", "dog"])


def test_marks_come_back_from_json() -> None:
    other = mark("fp16", 3, ROWS, ["cat", "dog", "no"])
    kept = json.loads(json.dumps(packed([SIDE, other])))
    assert kept["right"]["fp16"] == {"3": {"naming": "11", "existence": "0"}}
    assert kept["images"] == {"naming": "0 1", "existence": "0"}
    assert unpacked(kept) == {"coded": SIDE, "fp16": other}


@pytest.mark.parametrize(
    ("part", "damaged"),
    [("images", {"naming": "0 x", "existence": "0"}), ("right", {"coded": {"three": {}}}), ("right", {"coded": "1"})],
)
def test_damaged_marks_are_refused(part: str, damaged: Any) -> None:
    with pytest.raises(DataError, match="marks that were kept cannot be read"):
        unpacked(packed([SIDE]) | {part: damaged})
    with pytest.raises(DataError, match=f"marks that were kept cannot be read: '{part}'"):
        unpacked({name: value for name, value in packed([SIDE]).items() if name != part})


@pytest.mark.parametrize(
    ("right", "words"),
    [
        ({}, "coded hold no seed"),
        ({3: {"naming": "10"}}, "coded at seed 3 are of the tasks naming, and its questions of naming, existence"),
        ({3: {"naming": "1", "existence": "1"}}, "coded at seed 3: task naming has 2 questions, .* are 1 characters"),
        ({0: SIDE.right[3], 3: {"naming": "12", "existence": "1"}}, "coded at seed 3: task naming has 2 questions"),
    ],
)
def test_marks_that_do_not_fit_their_questions_are_refused(right: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Marks("coded", "", SIDE.images, right)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (marks("fp16", {0: {"a": "10"}}), "coded and fp16 answered different tasks: a, b, and a"),
        (marks("fp16", {0: {"a": "10", "b": "101"}}), "coded and fp16 answered different questions: 2 and 3 of task b"),
        (marks("fp16", {0: {"a": "10", "b": "10"}}, "others"), "coded and fp16 .* as many in each task, but not the"),
        (
            Marks("fp16", "the same", {"a": [0, 0], "b": [2, 3]}, {0: {"a": "10", "b": "10"}}),
            "coded and fp16 .* as many in each task, but not the",
        ),
    ],
)
def test_unequal_questions_are_refused_by_name(other: Marks, words: str) -> None:
    with pytest.raises(DataError, match=words):
        same_questions(marks("coded", {0: {"a": "10", "b": "10"}}), other)
    with pytest.raises(DataError, match=words):
        packed([marks("coded", {0: {"a": "10", "b": "10"}}), other])


def test_runs_are_joined_by_seed() -> None:
    runs = [marks("coded", {seed: {"a": mark}}) for seed, mark in ((2, "10"), (0, "01"))]
    both = joined(runs)
    assert both.seeds == [0, 2]
    assert both.of("a").tolist() == [[0, 1], [1, 0]]
    assert both.at([2]) == runs[0]
    with pytest.raises(DataError, match="coded have a seed twice"):
        joined([*runs, runs[0]])
    with pytest.raises(DataError, match="different questions"):
        joined([*runs, marks("coded", {1: {"a": "10"}}, "others")])
