"""Questions and answers as token ids: the tokenizer, the prompt, and the place of the image in it.

Shapes: B sequences about I images, N tokens of all sequences together (no padding).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from transformers import AutoTokenizer

from bitseam import config
from bitseam.errors import DataError, ModelError
from bitseam.parties.text import TextBatch

_IMAGE = "<image>"


class Prompter:
    """Turns questions and answers into token ids, with the place of the image marked."""

    def __init__(self, settings: config.Text, locate: Callable[[str], str] = str) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(locate(settings.tokenizer))
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"text.tokenizer {settings.tokenizer!r} cannot be loaded: {error}") from error
        if settings.prompt == "chat" and not self.tokenizer.chat_template:
            raise ModelError(
                f"text.prompt is 'chat', but the tokenizer {settings.tokenizer!r} has no chat template: give a "
                "template with {image} and {question}"
            )
        self._settings = settings

    @property
    def vocabulary(self) -> int:
        return len(self.tokenizer)

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.tokenizer.eos_token_id

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's whole definition: equal text gives equal ids on both sides."""
        whole = self.tokenizer.backend_tokenizer.to_str() + repr(sorted(self.tokenizer.special_tokens_map.items()))
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

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

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids up to the end token -> text."""
        kept = list(ids)
        if self.end in kept:
            kept = kept[: kept.index(self.end)]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def _row(self, question: str, answer: str | None) -> tuple[list[int], list[int], list[int]]:
        chat = self._settings.prompt == "chat"
        if chat:
            turn = [{"role": "user", "content": f"{_IMAGE}\n{question.replace(_IMAGE, '')}"}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            head, _, tail = text.partition(_IMAGE)
        else:
            head, _, tail = self._settings.prompt.partition("{image}")
            head, tail = (part.replace("{question}", question) for part in (head, tail))
        before = self.tokenizer(head, add_special_tokens=not chat)["input_ids"]
        if before and not chat and before[-1] == self.end:
            before = before[:-1]  # tokenizers that close every text
        after = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        spoken = []
        if answer is not None:
            spoken = [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.end]
        total = len(before) + len(after) + len(spoken)
        if total > self._settings.max_tokens:
            raise DataError(
                f"a row of {total} tokens is over text.max_tokens = {self._settings.max_tokens}: {question!r}"
            )
        return before, after, spoken
