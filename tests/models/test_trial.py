"""The rows that a language model is tried on, and what is wrong with models that go astray on purpose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import Tiny
from test_layout import model_of

from bitseam.errors import ModelError
from bitseam.models.server import ServerModel, Ways
from bitseam.models.trial import IMAGE, TOLERANCES, Trial

WAYS = [Ways(rows, everywhere) for rows in ("packed", "padded", "alone") for everywhere in (False, True)]  # type: ignore[arg-type]


def seeded(tiny: Tiny) -> ServerModel:
    torch.manual_seed(0)
    return model_of(tiny)


@contextmanager
def astray(model: ServerModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Its last hidden states (B, S, D) are changed before they go to the head."""

    def changed(_: Any, given: Any, out: Any) -> Any:
        out.last_hidden_state = change(out.last_hidden_state)
        return out

    handle = model.language.base.model.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def test_rows_share_beginnings_and_answer_behind_images(tiny: Tiny) -> None:
    trial = Trial(seeded(tiny), (), 0)
    text = trial._text
    assert text.lengths.tolist() == [9, 6, 4, 2]
    assert text.image_at.tolist() == [2, 2, 1, 0]
    assert text.image.tolist() == [0, 0, 1, 2]
    answers = [part.tolist() for part in text.answers.split(text.lengths.tolist())]
    assert answers == [[False] * 6 + [True] * 3, [False] * 2 + [True] * 4, [False] * 2 + [True] * 2, [True] * 2]
    ids = [part.tolist() for part in text.ids.split(text.lengths.tolist())]
    assert ids[0][:2] == ids[1][:2]
    assert not {1, 2} & set(text.ids.tolist())
    assert trial._pictures.shape == (3, IMAGE)
    assert torch.equal(Trial(seeded(tiny), (), 0)._text.ids, text.ids)
    assert not torch.equal(Trial(seeded(tiny), (), 1)._text.ids, text.ids)
    rows = list(trial._rows(text))
    assert [at for at, _, _ in rows] == [2, 2, 1, 0]
    assert rows[2][1].tolist() == [ids[2][0], *trial._pictures[1].tolist(), *ids[2][1:]]
    assert rows[2][2].tolist() == [False] * 6 + [True] * 2


def test_the_first_row_goes_beyond_lengths_and_questions_end_before_them(tiny: Tiny) -> None:
    trial = Trial(seeded(tiny), (), 0)
    assert trial._asked.lengths.tolist() == [9, 2]
    trial = Trial(seeded(tiny), (6, 20), 0)
    assert trial._text.lengths.tolist() == [20, 6, 4, 2]  # with its image four more than 20
    asked = trial._asked
    assert asked.lengths.tolist() == [20, 2, 15, 2]
    assert asked.image_at.tolist() == [2, 2, 2, 0]
    assert asked.image.tolist() == [0, 0, 0, 2]
    assert asked.ids.tolist() == [*trial._text.ids[:20], *trial._text.ids[:2], *trial._text.ids[:15], *asked.ids[-2:]]
    assert asked.ids[-2:].tolist() == trial._text.ids[-2:].tolist()
    assert not asked.answers.any()


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_a_sound_model_is_itself_in_every_way_of_training(tiny: Tiny, ways: Ways) -> None:
    trial = Trial(seeded(tiny), (), 0)
    found = trial.train(ways)
    assert list(found) == ["loss", "gradient by the embeddings"]
    assert all(size <= TOLERANCES[what] / 10 for what, size in found.items())
    assert trial.train(ways) == found


@pytest.mark.parametrize("answers", ["together", "alone", "uncached"])
def test_a_sound_model_is_itself_in_every_way_of_answering(tiny: Tiny, answers: Any) -> None:
    trial = Trial(seeded(tiny), (6,), 0)
    trial.require_memoryless()
    assert trial.answer(Ways(answers=answers))["answers"] <= 1e-5
    assert trial.generate == ""


def test_loss_and_gradient_are_compared_with_the_models_own(tiny: Tiny) -> None:
    model = seeded(tiny)
    trial = Trial(model, (), 0)
    exact = trial.train(Ways())
    assert trial._own is not None
    loss, gradient = trial._own
    assert gradient.shape == (3, IMAGE, 32)
    trial._own = 2 * loss, gradient
    assert trial.train(Ways())["loss"] == pytest.approx(0.5, rel=1e-3)
    trial._own = loss, gradient / 2
    assert trial.train(Ways())["gradient by the embeddings"] == pytest.approx(1, rel=1e-3)
    trial._own = None
    assert trial.train(Ways()) == exact
    summed = 0.0
    for _, ids, answers in trial._rows(trial._text):
        labels = torch.where(answers, ids, -100)[None]
        summed += float(model.language.base(input_ids=ids[None], labels=labels).loss.detach()) * int(answers.sum())
    assert float(loss) == pytest.approx(summed, rel=1e-5)


def test_a_loss_of_its_own_is_refused(tiny: Tiny) -> None:
    model = seeded(tiny)

    def doubled(_: Any, given: Any, out: Any) -> Any:
        out.loss = None if out.loss is None else out.loss * 1.01
        return out

    model.language.base.register_forward_hook(doubled)
    with pytest.raises(ModelError, match=r"its own loss is not the mean cross-entropy of the next tokens: \d\.\d{4}, "):
        Trial(model, (), 0).train(Ways())


def test_losses_that_are_no_numbers_are_refused(tiny: Tiny) -> None:
    model = seeded(tiny)
    with astray(model, lambda state: state * math.nan), pytest.raises(ModelError, match="random tokens is nan"):
        Trial(model, (), 0).train(Ways())


def test_looking_ahead_is_refused(tiny: Tiny) -> None:
    model = seeded(tiny)
    ahead = astray(model, lambda state: state + 0.1 * state.mean(1, keepdim=True))
    with ahead, pytest.raises(ModelError, match="it looks at tokens that come later"):
        Trial(model, (), 0).train(Ways())


def test_remembering_rows_is_refused(tiny: Tiny) -> None:
    model, lengths = seeded(tiny), [0]

    def stretched(state: torch.Tensor) -> torch.Tensor:
        lengths.append(max(lengths[-1], state.shape[1]))
        noise = torch.randn(state.shape, generator=torch.Generator().manual_seed(0))
        return state + 0.01 * lengths[-1] * noise

    with astray(model, stretched), pytest.raises(ModelError, match=r"depends on the rows before it, by \d\.\de-0\d, "):
        Trial(model, (), 0).require_memoryless()


def test_a_generate_that_is_not_its_forward_pass_is_told_and_left_aside(tiny: Tiny) -> None:
    model = seeded(tiny)
    trial = Trial(model, (), 0)

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("of\nits own")

    model.language.base.generate = broken
    assert trial.answer(Ways(answers="uncached"))["answers"] <= 1e-5
    assert trial.generate == "of its own"

    model = seeded(tiny)
    trial = Trial(model, (), 0)
    # With a cache, a row's later steps have one token each: those alone are changed.
    with astray(model, lambda state: state + 0.5 * state.roll(1, -1) * (state.shape[1] == 1)):
        assert trial.answer(Ways(answers="uncached"))["answers"] <= 1e-5
        assert trial.generate.endswith("from its own forward pass, relative")
        assert trial.answer(Ways(answers="alone"))["answers"] > 1e-3
