"""What is shown while an answer comes is, in the end, what the whole answer decodes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, byte_fallback, byte_level, save, word_level, word_piece, wrap
from tokenizers import Tokenizer, decoders

from bitseam import config
from bitseam.text.answer_stream import AnswerStream
from bitseam.text.prompts import Prompter


def cleaned() -> Tokenizer:
    """BERT's decoder takes the spaces before punctuation out, word by word."""
    tokenizer = word_piece()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


@pytest.fixture(
    scope="module",
    params=[*KINDS, cleaned, "cleaned by transformers"],
    ids=lambda make: getattr(make, "__name__", make),
)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    by_transformers = isinstance(request.param, str)
    make = word_level if by_transformers else request.param
    return save(tmp_path_factory.mktemp("kind"), wrap(make(), clean_up_tokenization_spaces=by_transformers))


@cache
def cached(folder: str) -> Prompter:
    return Prompter(config.Text(tokenizer=folder, prompt="{image}{question}"))


def shown(prompter: Prompter, ids: Sequence[int]) -> list[str]:
    """What is printed after each token, and at the end."""
    stream = AnswerStream(prompter)
    return [*(stream.feed([token]) for token in ids), stream.close()]


@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_D7_what_is_shown_is_the_answer(kind: str, data: st.DataObject) -> None:
    """Property, over any ids: bytes that are no characters, control tokens, ids of no token, what follows the end."""
    prompter = cached(kind)
    ids = data.draw(st.lists(st.integers(0, prompter.vocabulary + 3), max_size=30))
    parts = shown(prompter, ids)
    assert "".join(parts).removeprefix("\n") == prompter.decode(ids) or parts[-1] == f"\n{prompter.decode(ids)}"
    if not prompter.tokenizer.clean_up_tokenization_spaces:
        assert "".join(parts) == prompter.decode(ids)  # never said twice


TEXTS = ("a red 🐱 and 猫です。", "écran été", "it is n't clear, 3.5 cm .", "👨‍👩‍👧 家族", "  two  spaces ")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, byte_fallback], ids=lambda make: make.__name__)
def test_D7_characters_of_several_tokens_are_whole(make: Callable[[], Tokenizer], text: str, tmp_path: Path) -> None:
    prompter = Prompter(config.Text(tokenizer=save(tmp_path, wrap(make())), prompt="{image}{question}"))
    parts = shown(prompter, prompter.answer(text))
    assert "".join(parts) == text.strip()
    assert not any("\ufffd" in part for part in parts)
    assert sum(map(bool, parts)) > 1  # it comes in parts all the same


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ("I do n't know , is it .", "I don't know, is it."),
        ("a ' cat or blue", "a'cat or blue"),
        ("it is n ' t red", "it isn't red"),
    ],
)
def test_D7_spaces_that_are_cleaned_up_are_never_shown(words: str, whole: str, tmp_path: Path) -> None:
    tokenizer = wrap(word_level(), clean_up_tokenization_spaces=True)
    tokenizer.add_tokens(["do", "n't", ",", ".", "it", "know", "I", "'", "n", "t", "red"])
    prompter = Prompter(config.Text(tokenizer=save(tmp_path, tokenizer), prompt="{image}{question}"))
    ids = tokenizer.convert_tokens_to_ids(words.split())
    parts = shown(prompter, ids)
    assert "".join(parts) == prompter.decode(ids) == whole
    assert any(parts[:-1])  # some of it before the end


@pytest.mark.parametrize("through", ["<|im_end|>", "<unk>", None])
def test_D7_a_run_of_bytes_goes_on_through_what_is_not_shown(through: str | None, tmp_path: Path) -> None:
    prompter = Prompter(config.Text(tokenizer=save(tmp_path, wrap(byte_fallback())), prompt="{image}{question}"))
    piece = prompter.tokenizer.convert_tokens_to_ids
    hidden = piece(through) if through else prompter.vocabulary + 1
    ids = [*map(piece, ("a", "<0xE7>", "<0x8C>", "<0xAB>")), hidden, piece("<0xFF>"), piece("a")]
    parts = shown(prompter, ids)
    assert "".join(parts) == prompter.decode(ids) == "a\ufffd\ufffd\ufffd\ufffda"


def test_D7_an_answer_that_changes_after_all_is_said_once_more(tmp_path: Path) -> None:
    backend = word_level()
    backend.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("cator", "dog")])
    prompter = Prompter(config.Text(tokenizer=save(tmp_path, wrap(backend)), prompt="{image}{question}"))
    ids = prompter.answer("a cat or")[:-1]
    parts = shown(prompter, ids)
    assert prompter.decode(ids) == "adog"
    assert "".join(parts) == "acat\nadog"


def test_D15_what_follows_the_end_is_not_shown(tmp_path: Path) -> None:
    prompter = Prompter(config.Text(tokenizer=save(tmp_path, wrap(byte_level())), prompt="{image}{question}"))
    ids = [*prompter.answer("a cat"), *prompter.answer("dog")]
    assert "".join(shown(prompter, ids)) == "a cat"
