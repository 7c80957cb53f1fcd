"""Scoring: what counts as the same answer, and the room that one is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe
from hypothesis import given
from hypothesis import strategies as st

from bitseam import config
from bitseam.data.rows import Row
from bitseam.errors import ConfigError, DataError
from bitseam.evals import answer_room, evaluate, normal
from bitseam.sessions.limits import session_limits
from bitseam.text.prompts import Prompter


@pytest.mark.parametrize(
    ("said", "right"),
    [
        *((said, "yes") for said in ("yes,", "yes?", '"yes"', "“yes”", "'Yes.'", '"yes".', " YES !", "…yes", "yes;")),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("\u00c9t\u00e9.", "e\u0301te\u0301"),
        ("STRASSE", "Straße"),
        ("a  red\tcat", "a red cat"),
        ("¿sí?", "sí"),
        ("「猫」。", "猫"),
        ("نعم؟", "نعم"),
        ("हाँ।", "हाँ"),
        ("3.5.", "3.5"),
        ("1,000,", "1,000"),
        ("(B).", "b"),
        ("[yes]", "yes"),
        ("\uff08はい\uff09", "はい"),
    ],
)  # fmt: skip
def test_answers_that_are_the_same(said: str, right: str) -> None:
    assert normal(said) == normal(right)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("35", "3.5"), ("1", "-1"), ("5", ".5"), ("50", "50%"), ("5", '5"'), ("5", "5'"), ("1000", "1,000"),
        ("cat", "a cat"), ("c", "C#"), ("yesno", "yes no"), (".", "!"), ("", "?"), ("cats", "cat's"), ("f(x)", "fx"),
    ],
)  # fmt: skip
def test_answers_that_are_not_the_same(said: str, right: str) -> None:
    assert normal(said) != normal(right)


@given(st.text(max_size=20))
def test_what_is_compared_is_compared_once(answer: str) -> None:
    assert normal(normal(answer)) == normal(answer)
    assert bool(normal(answer)) == bool(answer.strip())


class Echo:
    """Stands where a server would: says the right answer, and as many tokens of it as it is asked for."""

    def __init__(self, prompter: Prompter, answers: Sequence[str]) -> None:
        self._prompter, self._answers = prompter, list(answers)
        self.asked: list[int] = []

    def ask(self, features: Any, text: Any, most: int) -> Iterator[list[int]]:
        self.asked.append(most)
        batch, self._answers = self._answers[: len(text.lengths)], self._answers[len(text.lengths) :]
        said = [[*self._prompter.answer(answer), *[self._prompter.end] * most] for answer in batch]
        for place in range(most):
            yield [ids[place] for ids in said]


LONG = "yes no yes no red blue cat dog a cat yes no"


@pytest.fixture
def prompter(tiny: Tiny) -> Prompter:
    return Prompter(make_recipe(tiny).text)


def rows_of(*answers: str) -> list[Row]:
    return [Row(Path("x.png"), "is this a cat ?", answer) for answer in answers]


def test_D6_an_evaluation_gives_room_for_the_longest_right_answer(prompter: Prompter) -> None:
    rows = rows_of("yes", LONG, "no", LONG)
    echo = Echo(prompter, [row.answer for row in rows])
    result = evaluate(echo, prompter, rows, lambda paths: torch.zeros(1), batch=3)  # type: ignore[arg-type]
    assert result.scores["all"].correct == 4
    assert result.answers[1] == LONG
    assert echo.asked == [13, 13]  # its twelve words and the end; the same in every batch


def test_D6_a_key_says_otherwise(prompter: Prompter, tiny: Tiny) -> None:
    rows = rows_of("yes", LONG)
    text = make_recipe(tiny).text
    assert answer_room(prompter, rows, text) == 13
    assert answer_room(prompter, rows, replace(text, max_answer_tokens=4)) == 4
    with pytest.raises(ConfigError, match=r"text\.max_answer_tokens"):
        make_recipe(tiny, text__max_answer_tokens=0)


def test_D6_an_answer_that_the_server_would_not_give_is_named(prompter: Prompter, tiny: Tiny) -> None:
    rows = rows_of("yes", "cat [/b] " * 200)
    text = make_recipe(tiny).text
    with pytest.raises(DataError, match=r"'cat \[/b\] .* tokens, and the server gives 256") as caught:
        answer_room(prompter, rows, text)
    assert len(str(caught.value)) < 350
    tokens = len(prompter.answer(rows[1].answer))
    assert f"set text.max_answer_tokens = {tokens} on both sides" in str(caught.value)
    wider = make_recipe(tiny, text__max_answer_tokens=tokens)
    assert answer_room(prompter, rows, wider.text) == tokens
    assert session_limits(wider, 16).new_tokens == tokens
    assert session_limits(make_recipe(tiny), 16).new_tokens == 256
    assert isinstance(wider, config.Recipe)
