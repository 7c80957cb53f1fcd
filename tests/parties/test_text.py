"""Ragged text batches, and their way over the wire."""

from __future__ import annotations

import pytest
import torch
from conftest import WORDS, Tiny, make_recipe

from bitseam.errors import CodecError, DataError, ModelError
from bitseam.parties.text import Prompter, read_text, text_message
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


@pytest.mark.parametrize("codes", [None, pb.Coded(shape=[3, 4], payload=b"x")])
def test_round_trip_over_the_wire(prompter: Prompter, codes: pb.Coded | None) -> None:
    batch = prompter.batch(["is this a cat ?", "dog ?", "there"], ["yes", "no", "a red cat"], ["one", "one", "other"])
    assert batch.image.tolist() == [0, 0, 1]
    message = text_message(batch, prompter.vocabulary, codes)
    back = read_text(pb.Text.FromString(message.SerializeToString()), prompter.vocabulary)
    for name in ("lengths", "image_at", "image", "answers"):
        assert torch.equal(getattr(back, name), getattr(batch, name)), name
    if codes is None:
        assert torch.equal(back.ids, batch.ids)
        bits = (len(WORDS) - 1).bit_length()
        assert len(message.ids) == -(-len(batch.ids) * bits // 8)  # no byte more than ceil(log2 V) bits a token
    else:  # the prompt's ids stay home
        assert torch.equal(back.ids[batch.answers], batch.ids[batch.answers])
        assert not back.ids[~batch.answers].any()


def test_ids_outside_the_vocabulary_are_refused(prompter: Prompter) -> None:
    message = text_message(prompter.batch(["dog ?"]), prompter.vocabulary)
    with pytest.raises(CodecError, match="outside the vocabulary of 9"):
        read_text(message, 9)


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
