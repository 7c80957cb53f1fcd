"""Rows that the language model is given: nothing in them may change what it computes."""

from __future__ import annotations

import torch
from conftest import Tiny, make_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from bitseam.halves.server import load_server_half
from bitseam.parties.layout import left_padded, packed
from bitseam.parties.models import ServerModel
from bitseam.parties.text import TextBatch

WIDTH = 32


def text_of(lengths: list[int], image_at: list[int], image: list[int], ids: list[int]) -> TextBatch:
    """Every token after the image but the first is an answer."""
    answers = [within > at for n, at in zip(lengths, image_at, strict=True) for within in range(n)]
    parts = (torch.tensor(part) for part in (lengths, image_at, image))
    return TextBatch(torch.tensor(ids), *parts, torch.tensor(answers, dtype=torch.bool))


@st.composite
def texts(draw: st.DrawFn) -> TextBatch:
    """Few ids and places, so that beginnings are often shared and often not."""
    image = sorted(draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
    image = [sorted(set(image)).index(i) for i in image]
    image_at = [draw(st.integers(0, 2)) for _ in image]
    lengths = [at + draw(st.integers(1, 5)) for at in image_at]
    ids = [draw(st.integers(3, 4)) for _ in range(sum(lengths))]
    return text_of(lengths, image_at, image, ids)


@settings(max_examples=60, deadline=None)
@given(text=texts(), known=st.booleans())
def test_packed_rows_compute_what_single_rows_do(tiny: Tiny, text: TextBatch, known: bool) -> None:
    recipe = make_recipe(tiny, seam__image_up__quantizer="fp32", seam__image_down__codec="fp32")
    model = ServerModel(load_server_half(recipe.server), recipe.seam)
    image = torch.randn(int(text.image.max()) + 1, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    image.requires_grad_()
    embedding = model.language.model.get_input_embeddings().weight

    def run(logits: torch.Tensor) -> list[torch.Tensor]:
        return [logits, *torch.autograd.grad(logits.square().sum(), [image, embedding], materialize_grads=True)]

    layout = packed(text, 4, known)
    embeds = model.assemble(text, image, None, layout)
    row, column = layout.text[:, text.answers]
    ours = run(
        model.language.logits(model.language.hidden(embeds, layout.attention_mask(embeds.dtype), layout.position))[
            row, column - 1
        ]
    )
    parts = []
    starts = text.lengths.cumsum(0) - text.lengths
    for b, (start, length, at) in enumerate(zip(starts, text.lengths, text.image_at, strict=True)):
        rows = model.language.embed(text.ids[start : start + length])
        whole = torch.cat([rows[:at], image[text.image[b]], rows[at:]])
        answers = torch.nonzero(text.answers[start : start + length])[:, 0] + 4  # all after the image
        parts.append(model.language.logits(model.language.hidden(whole[None]))[0, answers - 1])
    for one, other in zip(ours, run(torch.cat(parts)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


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
