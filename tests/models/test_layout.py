"""Rows that the language model is given: nothing in them may change what it computes."""

from __future__ import annotations

import pytest
import torch
from conftest import Tiny, make_recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import IDENTITY
from torch.nn.functional import cross_entropy

from bitseam.models.language.half import load_language_half
from bitseam.models.layout import left_padded, packed
from bitseam.models.server import ServerModel, Ways
from bitseam.text.batch import TextBatch
from bitseam.text.prompts import Prompter

WIDTH = 32


def text_of(
    lengths: list[int], image_at: list[int], image: list[int], ids: list[int], answers: list[bool] | None = None
) -> TextBatch:
    """Every token after the image but the first is an answer, where it is not said."""
    if answers is None:
        answers = [within > at for n, at in zip(lengths, image_at, strict=True) for within in range(n)]
    parts = (torch.tensor(part) for part in (lengths, image_at, image))
    return TextBatch(torch.tensor(ids), *parts, torch.tensor(answers, dtype=torch.bool))


@st.composite
def texts(draw: st.DrawFn) -> TextBatch:
    """Few ids and places, so that beginnings are often shared and often not; any token may be an answer that follows
    another or the image."""
    image = sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
    image = [sorted(set(image)).index(i) for i in image]
    image_at = [draw(st.integers(0, 2)) for _ in image]
    lengths = [at + draw(st.integers(1, 5)) for at in image_at]
    ids = [draw(st.integers(3, 4)) for _ in range(sum(lengths))]
    answers = [
        draw(st.booleans()) and not within == 0 < at
        for n, at in zip(lengths, image_at, strict=True)
        for within in range(n)
    ]
    return text_of(lengths, image_at, image, ids, answers)


def model_of(tiny: Tiny) -> ServerModel:
    recipe = make_recipe(tiny, **IDENTITY)
    return ServerModel(load_language_half(recipe.server), recipe).eval()


def images(text: TextBatch) -> torch.Tensor:
    shape = int(text.image.max()) + 1, 4, WIDTH
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def sum_of_rows(model: ServerModel, text: TextBatch, image: torch.Tensor) -> torch.Tensor:
    """The loss of each sequence in a forward pass of its own, by transformers alone."""
    whole, start, total = model.language.model, 0, torch.zeros(())
    for length, at, picture in zip(text.lengths.tolist(), text.image_at.tolist(), text.image.tolist(), strict=True):
        ids, answers = text.ids[start : start + length], text.answers[start : start + length]
        words = whole.get_input_embeddings()(ids)
        hidden = torch.full((4,), -100)
        labels = torch.where(answers, ids, -100)
        labels = torch.cat([labels[:at], hidden, labels[at:]])
        if answers.any():
            embeds = torch.cat([words[:at], image[picture], words[at:]])
            total = total + whole(inputs_embeds=embeds[None], labels=labels[None]).loss * answers.sum()
        start += length
    return total


@pytest.mark.parametrize("ways", [Ways("packed"), Ways("padded"), Ways("alone"), Ways("packed", everywhere=True)])
@settings(max_examples=25, deadline=None)
@given(text=texts(), known=st.booleans())
def test_D1_a_batch_is_the_sum_of_its_rows(tiny: Tiny, text: TextBatch, known: bool, ways: Ways) -> None:
    model = model_of(tiny)
    image = images(text)
    embedding = model.language.model.get_input_embeddings().weight

    def figures(loss: torch.Tensor) -> list[torch.Tensor]:
        if not loss.requires_grad:
            return [loss, torch.zeros_like(image), torch.zeros_like(embedding)]
        return [loss, *torch.autograd.grad(loss, [image, embedding], materialize_grads=True)]

    logits = model.logits(text, *model.embed(text, {"image": image}), ways, known)
    ours = figures(cross_entropy(logits, text.ids[text.answers], reduction="sum"))
    for one, other in zip(ours, figures(sum_of_rows(model, text, image)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "prompt", ["{question}{image}", "{image}{question}", "what {question} {image} is", "{image} {question}"]
)
def test_D1_answers_directly_behind_an_image_that_questions_share(tiny: Tiny, prompt: str) -> None:
    # The reported case: one image and question, several answers.
    model, prompter = model_of(tiny), Prompter(make_recipe(tiny, text__prompt=prompt).text)
    model.ways = Ways("packed")
    text = prompter.batch(["cat ?", "cat ?", "", "dog ?"], ["yes", "no", "a red cat", ""], "aaab")
    image = images(text)
    alone = sum_of_rows(model, text, image)
    torch.testing.assert_close(model.loss(text, {"image": image}), alone, rtol=1e-5, atol=1e-5)


def test_D1_the_place_that_predicts_the_first_token_behind_a_shared_image() -> None:
    text = text_of([4, 3], [2, 2], [0, 0], [7, 8, 1, 2, 7, 8, 3], [False, False, True, True, False, False, True])
    layout = packed(text, 4)
    # 2 + 4 shared, then 2 and 1: both first tokens are predicted by the image's last state, at column 5.
    assert layout.text.tolist() == [[0] * 7, [0, 1, 6, 7, 0, 1, 8]]
    assert layout.previous.tolist() == [[0] * 7, [-1, 0, 5, 6, -1, 0, 5]]


def test_questions_about_one_image_share_it() -> None:
    # 2 + 4 tokens shared and 3 + 1 + 2 of their own; then one alone, of 1 + 4 + 1.
    text = text_of([5, 3, 4, 2], [2, 2, 2, 1], [0, 0, 0, 1], [7, 8, 1, 2, 3, 7, 8, 4, 7, 8, 5, 6, 7, 9])
    layout = packed(text, 4)
    assert layout.position.shape == (2, 12)
    assert layout.images.tolist() == [0, 1]
    assert layout.first.sum() == 2 + 3 + 1 + 2 + 2
    assert layout.position[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 6, 7]
    mask = layout.attention_mask(torch.float32)
    assert mask is not None
    assert (mask[0, 0, 11] == 0).tolist() == [True] * 6 + [False] * 4 + [True] * 2
    assert packed(text, 4, ids_known=False).images.tolist() == [0, 0, 0, 1]  # nothing is known to be the same


def test_many_questions_about_one_image_do_not_make_one_endless_row() -> None:
    count, tokens = 40, 4
    layout = packed(text_of([5] * count, [2] * count, [0] * count, [7, 8, 1, 2, 3] * count), tokens)
    assert layout.position.shape[1] <= 4 * (tokens + 5)
    assert layout.sequence[layout.group >= 0].unique().tolist() == [-1, *range(count)]
    assert layout.images.tolist() == [0] * len(layout.images)
    assert len(layout.images) == 4  # of 10 questions each: 6 tokens shared and 30 of their own


def test_short_rows_share_a_row_and_equal_ones_need_no_mask() -> None:
    lengths, ids = [9, 3, 2], list(range(14))
    layout = packed(text_of(lengths, [1, 1, 1], [0, 1, 2], ids), 1)
    assert layout.position.shape == (2, 10)
    assert layout.attention_mask(torch.float32) is not None
    assert packed(text_of([3, 3], [1, 1], [0, 1], ids[:6]), 1).attention_mask(torch.float32) is None


def test_left_padding_for_generation() -> None:
    layout = left_padded(text_of([2, 4], [1, 1], [0, 0], [5, 6, 5, 6, 7, 8]), 2)
    assert layout.padding_mask.tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert layout.images.tolist() == [0, 0]
    assert layout.text.tolist() == [[0, 0, 1, 1, 1, 1], [2, 5, 0, 3, 4, 5]]
