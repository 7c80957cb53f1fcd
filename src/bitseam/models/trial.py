"""Rows of random tokens that a language model is tried on: what it makes of them by itself, and what we make of them.

Shapes: B sequences, L tokens of one, I images of M tokens, D language width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from bitseam.errors import ModelError, first_sentence
from bitseam.models.language.half import plain_settings
from bitseam.models.server import ServerModel, Ways
from bitseam.text.batch import TextBatch

# Relative. In models of 30 layers and 135 million weights rounding of float32 is 1e-6 in a loss and 1e-5 in a gradient,
# and ten times as much where weights are six times as large; what is wrong is far above.
TOLERANCES = {"loss": 1e-4, "gradient by the embeddings": 1e-3, "answers": 1e-4}
_TOLERANCE = 1e-4  # of the model's own results with each other
IMAGE = 4  # tokens
_NEW = 3  # tokens of an answer
# Of each sequence: its image, tokens before and behind it, and how many of the last are an answer. The first two share
# a beginning; the second and the last answer directly behind the image; the last two fit into one row.
_ROWS = ((0, 2, 7, 3), (0, 2, 4, 4), (1, 1, 3, 2), (2, 0, 2, 2))
_BEYOND = 4  # tokens
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)


class Trial:
    """One draw of rows. beyond: lengths beyond which the first row must go; the others are short.

    generate: why the model's own `generate` does not fit its own forward pass, by which it is trained; "" where it
    does. Known after an answer.

    Raises ModelError where the model's own results are no ground to compare with: its loss is not that of the next
    token, it looks ahead, or it fails.
    """

    def __init__(self, model: ServerModel, beyond: Sequence[int], draw: int) -> None:
        self._model, self._base, self._run = model, model.language.base, model.language.run
        self._device = next(model.parameters()).device
        generator, usual = torch.Generator().manual_seed(draw), _usual_ids(model)

        def tokens(count: int) -> Tensor:
            return usual[torch.randint(len(usual), (count,), generator=generator)]

        before = [tokens(row[1]) for row in _ROWS]
        before[1] = before[0]
        behind = [tokens(row[2]) for row in _ROWS]
        behind[0] = tokens(max(len(behind[0]), max(beyond, default=0) + _BEYOND - len(before[0]) - IMAGE))
        lengths = torch.tensor([len(b) + len(a) for b, a in zip(before, behind, strict=True)])
        ends = lengths.cumsum(0)
        answers = torch.zeros(int(ends[-1]), dtype=torch.bool)
        for end, row in zip(ends.tolist(), _ROWS, strict=True):
            answers[end - row[3] : end] = True
        self._text = TextBatch(
            ids=torch.cat([part for pair in zip(before, behind, strict=True) for part in pair]),
            lengths=lengths,
            image_at=torch.tensor([row[1] for row in _ROWS]),
            image=torch.tensor([row[0] for row in _ROWS]),
            answers=answers,
        )
        self._asked = self._questions(beyond)
        self._pictures = tokens(3 * IMAGE).view(3, IMAGE)
        self.generate = ""
        self._own: tuple[Tensor, Tensor] | None = None
        self._steps: list[Tensor] = []

    @torch.no_grad()
    def require_memoryless(self) -> None:
        """Raise ModelError where a row's logits depend on the rows before it, as with positions that are stretched."""
        rows = [ids[None] for _, ids, _ in self._rows(self._text)]
        between = rows[0][:, :-2]
        _, first, _, again = (self._run(input_ids=ids).logits for ids in (rows[-1], between, rows[0], between))
        if (size := apart(again, first)) > _TOLERANCE:
            raise ModelError(
                f"what it makes of a row depends on the rows before it, by {size:.1e}, relative: lower text.max_tokens "
                "and seam.max_tokens so that rows stay within its max_position_embeddings"
            )

    def train(self, ways: Ways) -> dict[str, float]:
        """How far loss and gradient are from the model's own."""
        if self._own is None:
            self._own = self._own_loss()
        loss, image = self.loss(ways)
        gradient = torch.autograd.grad(loss, image)[0]
        return {"loss": apart(loss.detach(), self._own[0]), "gradient by the embeddings": apart(gradient, self._own[1])}

    def loss(self, ways: Ways) -> tuple[Tensor, Tensor]:
        """Summed over answer tokens, nats, and the images' embeddings (I, M, D) to differentiate it by."""
        text, embed = self._text, self._model.language.embed
        image = embed(self._pictures.to(self._device)).detach().requires_grad_()
        rows = embed(text.ids.to(self._device)).detach()
        logits = self._model.logits(text, rows, image, ways, ids_known=True)
        return cross_entropy(logits, text.ids[text.answers].to(self._device), reduction="sum"), image

    def answer(self, ways: Ways) -> dict[str, float]:
        """How far the logits of greedy answers are from those of whole forward passes of the model."""
        text, embed = self._asked, self._model.language.embed
        if not self._steps:
            self._steps = [self._own_steps(ids[None]) for _, ids, _ in self._rows(text)]
        rows, image = embed(text.ids.to(self._device)), embed(self._pictures.to(self._device))
        with _recorded(self._base) as steps, torch.no_grad():
            self._model.answers(text, rows, image, ways, _NEW, (), 0)
        ours = torch.stack(steps, 1) if ways.answers == "together" else torch.cat(steps).unflatten(0, (-1, _NEW))
        return {"answers": max(_steps_apart(*pair) for pair in zip(ours, self._steps, strict=True))}

    def _questions(self, beyond: Sequence[int]) -> TextBatch:
        """The first sequence, whole and so cut that its answer goes beyond a length, and the last, short one."""
        text = self._text
        long, short = int(text.lengths[0]), int(text.lengths[-1])
        cuts = [long, *(max(length - 1 - IMAGE, int(text.image_at[0])) for length in beyond)]
        ids = torch.cat([*(text.ids[:cut] for cut in cuts), text.ids[-short:]])
        return TextBatch(
            ids=ids,
            lengths=torch.tensor([*cuts, short]),
            image_at=text.image_at[[0] * len(cuts) + [-1]],
            image=text.image[[0] * len(cuts) + [-1]],
            answers=torch.zeros(len(ids), dtype=torch.bool),
        )

    @torch.no_grad()
    def _own_steps(self, ids: Tensor) -> Tensor:
        """Logits (steps, V) of a greedy answer to (1, L), by whole forward passes."""
        try:
            with _recorded(self._base) as recorded, plain_settings(self._base):
                settings = GenerationConfig(max_new_tokens=_NEW, do_sample=False, num_beams=1, pad_token_id=0)
                whole = self._base.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            own = self._run(input_ids=whole[:, :-1]).logits[0, -_NEW:].float()
            if (size := _steps_apart(torch.cat(recorded), own)) <= _TOLERANCE:
                return own
            self.generate = f"{size:.1e} from its own forward pass, relative"
        except FAILURES as error:
            self.generate = first_sentence(error)
        steps = []
        for _ in range(_NEW):
            steps.append(self._run(input_ids=ids).logits[0, -1].float())
            ids = torch.cat([ids, steps[-1].argmax()[None, None]], 1)
        return torch.stack(steps)

    def _own_loss(self) -> tuple[Tensor, Tensor]:
        losses = []
        gradient = torch.zeros(*self._pictures.shape, self._model.language.width, device=self._device)
        for picture, (at, ids, answers) in zip(self._text.image.tolist(), self._rows(self._text), strict=True):
            labels = torch.where(answers, ids, -100)[None]
            with _leaf_of(self._base.get_input_embeddings()) as leaves:
                out = self._run(input_ids=ids[None], labels=labels)
            plain = cross_entropy(out.logits[0, :-1].float().detach(), labels[0, 1:])
            if not math.isfinite(plain):
                raise ModelError(f"its own loss of random tokens is {float(plain)}")
            loss = out.loss.detach()
            if apart(loss, plain) > _TOLERANCE:
                raise ModelError(
                    f"its own loss is not the mean cross-entropy of the next tokens: {float(loss):.4f}, where that is "
                    f"{float(plain):.4f}"
                )
            own = torch.autograd.grad(out.loss * answers.sum(), leaves[0])[0][0]
            if own[-1].any():  # it predicts nothing in its row
                raise ModelError("it looks at tokens that come later, so that it is no causal language model")
            losses.append(loss * answers.sum())
            gradient[picture] += own[at : at + IMAGE]
        return torch.stack(losses).sum(), gradient

    def _rows(self, text: TextBatch) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each sequence, as one without images: where its image begins, ids (L,), and which are answers (L,)."""
        start = 0
        for length, at, picture in zip(text.lengths.tolist(), text.image_at.tolist(), text.image.tolist(), strict=True):
            ids, answers = text.ids[start : start + length], text.answers[start : start + length]
            whole = torch.cat([ids[:at], self._pictures[picture], ids[at:]])
            told = torch.cat([answers[:at], torch.zeros(IMAGE, dtype=torch.bool), answers[at:]])
            yield at, whole.to(self._device), told.to(self._device)
            start += length


def apart(ours: Tensor, own: Tensor) -> float:
    """Of two tensors, relative to the second; infinite where either is not finite."""
    scale, size = own.norm(), (ours.to(own.device) - own).norm()
    relative = float(size / scale) if scale else (math.inf if size else 0.0)
    return relative if math.isfinite(relative) else math.inf


def _steps_apart(ours: Tensor, own: Tensor) -> float:
    """Logits (steps, V) of two answers, until they go different ways: then what they go on from is different too."""
    most = 0.0
    for one, other in zip(ours, own, strict=True):
        most = max(most, apart(one.nan_to_num(), other.nan_to_num()))
        if one.argmax() != other.argmax():
            break
    return most


def _usual_ids(model: ServerModel) -> Tensor:
    """Token ids without those that have a meaning in the model's settings: padding, marks of an image."""
    settings = model.language.base.config.get_text_config().to_dict()
    special = {value for name, value in settings.items() if name.endswith("token_id") and isinstance(value, int)}
    ids = torch.arange(model.language.vocabulary)
    return ids[~torch.isin(ids, torch.tensor(sorted(special), dtype=torch.int64))]


@contextmanager
def _leaf_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module gives is a leaf while this lasts, so that gradients by it can be taken."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _given: Any, out: Tensor) -> Tensor:
        leaves.append(out.detach().requires_grad_())
        return leaves[-1].clone()

    handle = module.register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[Tensor]]:
    """The last logits (B, V) of each forward pass."""
    steps: list[Tensor] = []
    handle = model.register_forward_hook(lambda _module, _given, out: steps.append(out.logits[:, -1].float()))
    try:
        yield steps
    finally:
        handle.remove()
