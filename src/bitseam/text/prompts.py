"""Questions and answers as token ids: the tokenizer, the prompt, and the place of the image in it.

Shapes: B sequences about I images, N tokens of all sequences together (no padding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch

from bitseam import config
from bitseam.errors import DataError, ModelError, printable
from bitseam.text.batch import TextBatch
from bitseam.text.templates import chat_template, plain_template
from bitseam.text.tokens import Reader, fingerprint, guarded, load_tokenizer

_WORDS = 64  # of the vocabulary, to try a template with


class Prompter:
    """Turns questions and answers into token ids, with the place of the image marked."""

    def __init__(self, settings: config.Text, locate: Callable[[str], str] = str) -> None:
        """Raises ModelError for a tokenizer that cannot be used, and for a template that makes no prompt of an image
        and a question."""
        what = f"text.tokenizer {printable(settings.tokenizer)!r}"
        chat = settings.prompt == "chat"
        self._folder = locate(settings.tokenizer)
        self.tokenizer: Any = load_tokenizer(what, self._folder)
        self._settings = settings
        self.template = chat_template(self.tokenizer, what) if chat else plain_template(settings.prompt)
        self._reader = Reader(self.tokenizer, what, self.template.placeholder)
        self._head, self._tail = ([self._reader.own(part) for part in side] for side in self.template.sides)
        self._opening: list[int] = []
        guarded(f"{what} cannot be used", partial(self._prove, what, chat))

    @cached_property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    @cached_property
    def fingerprint(self) -> str:
        """Of the tokenizer, for the handshake; the prompt's template is the client's own business."""
        return guarded("text.tokenizer has no fingerprint", lambda: fingerprint(self.tokenizer, self._folder))

    def batch(
        self, questions: Sequence[str], answers: Sequence[str] | None = None, images: Sequence[object] | None = None
    ) -> TextBatch:
        """B questions, with answers in training -> a ragged batch. Raises DataError for a row that is too long.

        images: what each is about; neighbours that are equal share one image. Each has its own where this is left out.
        """
        rows = [self._row(q, answers[i] if answers is not None else None) for i, q in enumerate(questions)]
        ids = [token for before, after, answer in rows for token in (*before, *after, *answer)]
        mask = [
            m for before, after, answer in rows for m in [False] * (len(before) + len(after)) + [True] * len(answer)
        ]
        return TextBatch(
            ids=torch.tensor(ids, dtype=torch.int64),
            lengths=torch.tensor([sum(map(len, row)) for row in rows]),
            image_at=torch.tensor([len(before) for before, _, _ in rows]),
            image=torch.tensor([i for i, (_, run) in enumerate(groupby(images or range(len(rows)))) for _ in run]),
            answers=torch.tensor(mask, dtype=torch.bool),
        )

    def answer(self, text: str) -> list[int]:
        """An answer's ids, with the end token."""
        return [*self._reader.ids(text), self.end]

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids up to the end token -> text."""
        kept = list(ids)
        if self.end in kept:
            kept = kept[: kept.index(self.end)]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def _row(self, question: str, answer: str | None) -> tuple[list[int], list[int], list[int]]:
        before, after = self._prompt(question)
        spoken = self.answer(answer) if answer is not None else []
        total = len(before) + len(after) + len(spoken)
        if total > self._settings.max_tokens:
            raise DataError(
                f"a row of {total} tokens is over text.max_tokens = {self._settings.max_tokens}: "
                f"{printable(question, 80)!r}"
            )
        return before, after, spoken

    def _prompt(self, question: str) -> tuple[list[int], list[int]]:
        """The ids before and behind the image."""
        asked = self.template.trim(question)
        before, after = (self._reader.ids(asked.join(side)) for side in (self._head, self._tail))
        before = [*self._opening, *before]
        begin = self.tokenizer.bos_token_id
        while begin is not None and before[:2] == [begin, begin]:
            before = before[1:]
        return before, after

    def _prove(self, what: str, chat: bool) -> None:
        """Try the template. Raises ModelError where transformers reads it otherwise, or all questions are alike."""
        words = self._words()
        if not words:
            raise ModelError(f"{what} can read no token of its own vocabulary")
        sides = list(zip((self._head, self._tail), self.template.sides, strict=True))
        if not any(
            all(self._reader.ids(word.join(ours)) == self._reader.original(word.join(side)) for ours, side in sides)
            for word in words
        ):
            raise ModelError(f"{what}: transformers reads the prompt otherwise than tokenizer.json says")
        if len({str(self._prompt(word)) for word in words}) < 2:
            raise ModelError(f"{what}: with text.prompt {printable(self._settings.prompt)!r}, all questions are alike")
        if not chat:  # a chat template writes its own beginning
            self._opening = self._missing(words[0])

    def _words(self) -> list[str]:
        """Some that the tokenizer knows, to try the template with; letters, where it has such."""
        known = sorted(set(self.tokenizer.get_vocab().values()) - self._reader.controls)
        words = [self.tokenizer.decode([i]).strip() for i in known[:: max(len(known) // _WORDS, 1)]]
        words = [word for word in words if word and self._reader.reads(word)]
        return [word for word in words if word.isalnum()] or words

    def _missing(self, word: str) -> list[int]:
        """What the tokenizer puts before a text, where the template has not written it itself."""
        opening = self._reader.opening(word)
        before, after = self._prompt(word)
        written = self.tokenizer.bos_token_id in before + after or before[: len(opening)] == opening
        return [] if written else opening
