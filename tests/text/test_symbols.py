"""Ragged text batches, and their way over the wire."""

from __future__ import annotations

import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import WORDS, Tiny, make_recipe
from hypothesis import given
from hypothesis import strategies as st

from bitseam.errors import CodecError, DataError, ModelError
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter
from bitseam.text.symbols import (
    DICTIONARY,
    deflate,
    dictionary_of,
    keep_dictionary,
    kept_dictionary,
    read_dictionary,
    read_text,
    register_dictionary,
    text_message,
)
from bitseam.wire import messages_pb2 as pb


@pytest.fixture
def prompter(tiny: Tiny) -> Prompter:
    return Prompter(make_recipe(tiny).text)


def test_layout_of_a_row(prompter: Prompter) -> None:
    batch = prompter.batch(["is this a cat ?", "dog ?"], ["yes", "a red cat"])
    word = WORDS.index
    first = ["what", "is", "this", "a", "cat", "?", "yes", "</s>"]
    second = ["what", "dog", "?", "a", "red", "cat", "</s>"]
    assert batch.ids.tolist() == [word(w) for w in first + second]
    assert batch.lengths.tolist() == [8, 7]
    assert batch.image_at.tolist() == [1, 1]
    assert batch.answers.tolist() == [False] * 6 + [True] * 2 + [False] * 3 + [True] * 4


def same(one: TextBatch, other: TextBatch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@st.composite
def any_batch(draw: st.DrawFn, vocabulary: int = 9) -> TextBatch:
    """Any mask, any place of the image, empty sequences too."""
    image = sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=5)))
    lengths = [draw(st.integers(0, 5)) for _ in image]
    total = sum(lengths)
    return TextBatch(
        ids=torch.tensor(
            draw(st.lists(st.integers(0, vocabulary - 1), min_size=total, max_size=total)), dtype=torch.int64
        ),
        lengths=torch.tensor(lengths),
        image_at=torch.tensor([draw(st.integers(0, length)) for length in lengths]),
        image=torch.tensor(image).unique(return_inverse=True)[1],
        answers=torch.tensor(draw(st.lists(st.booleans(), min_size=total, max_size=total)), dtype=torch.bool),
    )


@pytest.mark.parametrize("vocabulary", [9, 2**16 - 5, 2**16 - 4, 2**31])
@given(data=st.data(), hidden=st.booleans(), known=st.booleans())
def test_any_batch_crosses_the_wire(vocabulary: int, data: st.DataObject, hidden: bool, known: bool) -> None:
    batch = data.draw(any_batch(vocabulary))
    dictionary = dictionary_of(data.draw(any_batch(vocabulary)), vocabulary, hidden) if known else b""
    message = text_message(batch, vocabulary, dictionary, hidden)
    back = read_text(pb.Text.FromString(message.SerializeToString()), vocabulary, dictionary, hidden)
    if hidden:  # the prompt's ids stay home
        batch = replace(batch, ids=batch.ids * batch.answers)
    assert same(back, batch)


def spelled(text: str, kind: str = "<u2") -> bytes:
    """Symbols as in the table of bitseam.text.symbols, numbers for ids."""
    marks = ["FIRST", "FURTHER", "HERE", "TURN", "HIDDEN"]
    return np.array([marks.index(s) if s in marks else 5 + int(s) for s in text.split()], kind).tobytes()


def symbols(text: str, kind: str = "<u2", cut: int | None = None) -> bytes:
    """The same as the wire has them; cut: bytes left out before compression."""
    return deflate(spelled(text, kind)[:cut])


def test_symbols_of_a_batch_are_as_documented(prompter: Prompter) -> None:
    batch = prompter.batch(["is ?", "cat", "dog"], ["yes", "", "no"], ["one", "one", "other"])
    stream = "FIRST 4 HERE 5 11 TURN 12 2 FURTHER 4 HERE 9 TURN 2 FIRST 4 HERE 10 TURN 13 2"
    hidden = (
        "FIRST HIDDEN HERE HIDDEN HIDDEN TURN 12 2 FURTHER HIDDEN HERE HIDDEN TURN 2 FIRST HIDDEN HERE HIDDEN TURN 13 2"
    )
    for vocabulary, kind in ((16, "<u2"), (70000, "<u4")):
        for hides, text in ((False, stream), (True, hidden)):
            message = text_message(batch, vocabulary, hidden=hides)
            assert zlib.decompress(message.symbols, wbits=-15) == spelled(text, kind)
        assert same(read_text(pb.Text(sequences=3, tokens=12, symbols=symbols(stream, kind)), vocabulary), batch)


def test_a_stream_as_first_written_down_is_read_for_ever() -> None:
    written, known = bytes.fromhex("6380b3ff333002d9209a890100"), bytes.fromhex("636060636062f85dc3ccc0c30000")
    text = read_text(pb.Text(sequences=2, tokens=5, symbols=written), 32000, read_dictionary(known))
    assert text.ids.tolist() == [1, 31990, 250, 1, 250]
    assert text.lengths.tolist() == [3, 2]
    assert text.image_at.tolist() == [1, 2]
    assert text.image.tolist() == [0, 0]
    assert text.answers.tolist() == [False, False, True, False, True]


def test_what_repeats_costs_next_to_nothing(prompter: Prompter) -> None:
    questions, answers = ["is this a cat ?", "what is there ?", "is there a dog ?"], ["yes", "a red cat", "no"]
    once = prompter.batch(questions, answers, [0, 0, 0])
    often = TextBatch.join([once] * 30)
    extra = text_message(often, 32000).ByteSize() - text_message(once, 32000).ByteSize()
    assert len(often.ids) - len(once.ids) == 29 * 25
    assert extra <= 29 * 25 / 30  # a thirtieth of a byte a token, where packing takes 15 bits


def test_what_was_calibrated_on_costs_next_to_nothing(prompter: Prompter) -> None:
    past = prompter.batch(["is this a cat ?", "what is there ?"], ["yes", "a red cat"])
    new = prompter.batch(["what is there ?", "is this a cat ?"], ["a red cat", "yes"])
    half = torch.nn.Module()
    register_dictionary(half)
    assert kept_dictionary(half) == bytes(DICTIONARY)
    keep_dictionary(half, read_dictionary(deflate(dictionary_of(past, 32000, hidden=False))))
    known = kept_dictionary(half)
    message = text_message(new, 32000, known)
    assert same(read_text(message, 32000, known), new)
    assert len(message.symbols) <= 8 < len(text_message(new, 32000).symbols) / 3
    with pytest.raises(CodecError, match="text: "):
        read_text(message, 32000)  # by a side that was not told


def test_a_dictionary_is_the_end_of_what_was_calibrated_on(prompter: Prompter) -> None:
    rows = [f"is this {word} ?" for word in WORDS[4:] for _ in range(2)]
    long = TextBatch.join([prompter.batch(rows)] * 200)
    raw = dictionary_of(long, 32000, hidden=False)
    assert len(raw) == DICTIONARY
    assert raw == zlib.decompress(text_message(long, 32000).symbols, wbits=-15)[-DICTIONARY:]
    assert dictionary_of(prompter.batch(["cat"]), 32000, hidden=True) == spelled("FIRST HIDDEN HERE HIDDEN")


@pytest.mark.parametrize(
    ("complaint", "data"),
    [
        ("that are not deflate's", b"\xff" * 20),
        ("are not of at most 32768 bytes", deflate(bytes(DICTIONARY + 1))),
        ("are not of at most 32768 bytes", deflate(bytes(2**26))),
        ("are not of at most 32768 bytes", deflate(b"words")[:-1]),
        ("are not of at most 32768 bytes", deflate(b"words") + b"x"),
    ],
)
def test_a_dictionary_of_a_liar_is_refused(complaint: str, data: bytes) -> None:
    with pytest.raises(CodecError, match=f"text: dictionary: .*{complaint}"):
        read_dictionary(data)


BROKEN = [
    ("0 bytes are not of at most 12 bytes", b""),
    ("bytes are not of at most 12 bytes", symbols("FIRST 1 HERE 2")[:-1]),
    ("bytes are not of at most 12 bytes", symbols("FIRST 1 HERE 2") + b"x"),
    ("bytes are not of at most 12 bytes", symbols("FIRST 1 HERE TURN 2 TURN TURN")),
    ("7 bytes are no symbols of 2 bytes", symbols("FIRST 1 HERE 2", cut=-1)),
    ("that are not deflate's", b"\xff" * 20),
    ("no first sequence", symbols("")),
    ("no first sequence", symbols("FURTHER 1 HERE 2")),
    ("no first sequence", symbols("1 FIRST HERE 2")),
    ("2 sequences and 2 tokens, where 1 and 2", symbols("FIRST 1 HERE FIRST 2")),
    ("1 sequences and 3 tokens, where 1 and 2", symbols("FIRST 1 HERE 2 1")),
    ("1 sequences and 3 tokens, where 1 and 2", symbols("FIRST 1 HERE 2 HIDDEN")),
    ("not one image in each", symbols("FIRST 1 2")),
    ("not one image in each", symbols("FIRST HERE HERE 1 2")),
    ("token 9 is outside the vocabulary of 9", symbols("FIRST HERE 9 1")),
    ("no batch gives", symbols("FIRST HERE 1 HIDDEN")),
    ("no batch gives", symbols("FIRST HERE 1 2 TURN")),
    ("no batch gives", symbols("FIRST TURN HERE 1 2")),
    ("no batch gives", symbols("FIRST HERE 1 TURN TURN 2")),
]


@pytest.mark.parametrize(("complaint", "data"), BROKEN)
def test_symbols_of_no_batch_are_refused(complaint: str, data: bytes) -> None:
    assert read_text(pb.Text(sequences=1, tokens=2, symbols=symbols("FIRST HERE TURN 1 TURN 2")), 9).answers[0]
    with pytest.raises(CodecError, match=f"text: .*{complaint}"):
        read_text(pb.Text(sequences=1, tokens=2, symbols=data), 9)


def test_images_are_in_each_sequence() -> None:
    with pytest.raises(CodecError, match="not one image in each"):
        read_text(pb.Text(sequences=2, tokens=2, symbols=symbols("FIRST HERE 1 HERE FURTHER 2")), 9)


@pytest.mark.parametrize("stream", ["FIRST 1 HERE 2", "FIRST HIDDEN HERE TURN HIDDEN", "FIRST HIDDEN HERE 2"])
def test_where_codes_cross_all_ids_of_the_prompt_and_no_other_are_hidden(stream: str) -> None:
    with pytest.raises(CodecError, match="no batch gives"):
        read_text(pb.Text(sequences=1, tokens=2, symbols=symbols(stream)), 9, hidden=True)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = symbols("FIRST HERE " + "1 " * 2**21)
    assert len(bomb) < 5000
    tracemalloc.start()
    with pytest.raises(CodecError, match="are not of at most 4000 bytes"):
        read_text(pb.Text(sequences=1, tokens=999, symbols=bomb), 9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**18  # the bomb holds 4 MiB


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=3), st.binary(max_size=3))
def test_damaged_bytes_are_a_batch_or_refused(changes: list[tuple[int, int]], more: bytes) -> None:
    data = bytearray(symbols("FIRST HERE 1 5 TURN 6 2 FURTHER HERE 1 7 TURN 6 2"))
    for place, value in changes:
        data[place % len(data)] = value
    message = pb.Text(sequences=2, tokens=8, symbols=bytes(data) + more)
    try:
        text = read_text(message, 9)
    except CodecError:
        return
    assert same(read_text(text_message(text, 9), 9), text)


@pytest.mark.parametrize("ids", [[9, 1], [1, -1]])
def test_ids_outside_the_vocabulary_are_not_sent(prompter: Prompter, ids: list[int]) -> None:
    batch = replace(prompter.batch(["?"]), ids=torch.tensor(ids))
    with pytest.raises(CodecError, match=f"ids from {min(ids)} to {max(ids)} in a vocabulary of 9"):
        text_message(batch, 9)


def test_a_row_that_is_too_long_is_named(prompter: Prompter) -> None:
    with pytest.raises(DataError, match=r"41 tokens is over text.max_tokens = 32"):
        prompter.batch(["cat " * 40])


def test_decode_stops_at_the_end_token(prompter: Prompter) -> None:
    word = WORDS.index
    assert prompter.decode([word("yes"), prompter.end, word("dog")]) == "yes"


def test_chat_needs_a_template(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        Prompter(make_recipe(tiny, text__prompt="chat").text)


def test_chat_template_places_the_image(tiny: Tiny, tmp_path) -> None:
    plain = Prompter(make_recipe(tiny).text).tokenizer
    plain.chat_template = "<s>{% for m in messages %}what {{ m.content }} {% endfor %}there"
    plain.save_pretrained(tmp_path)
    prompter = Prompter(make_recipe(tiny, text__tokenizer=str(tmp_path), text__prompt="chat").text)
    batch = prompter.batch(["a cat"])
    assert [WORDS[i] for i in batch.ids] == ["<s>", "what", "a", "cat", "there"]
    assert batch.image_at.tolist() == [2]


def test_fingerprint_tells_tokenizers_apart(tiny: Tiny, tmp_path) -> None:
    one = Prompter(make_recipe(tiny).text)
    one.tokenizer.add_tokens(["extra"])
    one.tokenizer.save_pretrained(tmp_path)
    other = Prompter(make_recipe(tiny, text__tokenizer=str(tmp_path)).text)
    same = Prompter(make_recipe(tiny).text)
    assert other.fingerprint != same.fingerprint
    assert same.fingerprint == Prompter(make_recipe(tiny).text).fingerprint
