"""Prompts and answers as ragged batches of token ids, and how they cross the wire.

Shapes: B sequences about I images, N tokens of all sequences together (no padding), A answer tokens among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from bitseam import config
from bitseam.codecs.packing import pack, unpack
from bitseam.errors import CodecError, DataError, ModelError
from bitseam.wire import messages_pb2 as pb

_IMAGE = "<image>"


@dataclass(frozen=True)
class TextBatch:
    """ids (N,) int64, 0 where they are not known to this side; lengths (B,); image_at (B,): tokens before the image;
    image (B,): which of the I images, ascending; answers (N,) bool."""

    ids: Tensor
    lengths: Tensor
    image_at: Tensor
    image: Tensor
    answers: Tensor

    @staticmethod
    def join(batches: Sequence[TextBatch]) -> TextBatch:
        """One batch after the other, the images too."""
        first = torch.tensor([0, *(int(batch.image[-1]) + 1 for batch in batches[:-1])]).cumsum(0)
        joined = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in vars(batches[0])}
        joined["image"] = torch.cat([batch.image + at for batch, at in zip(batches, first, strict=True)])
        return TextBatch(**joined)


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

    @property
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


def text_message(text: TextBatch, vocabulary: int, prompt_codes: pb.Coded | None = None) -> pb.Text:
    """A ragged batch as a message; ids of the prompt stay home where it crosses as codes."""
    sent = text.ids if prompt_codes is None else text.ids[text.answers]
    return pb.Text(
        lengths=text.lengths.tolist(),
        image_at=text.image_at.tolist(),
        questions=text.image.bincount().tolist(),
        answers=np.packbits(text.answers.numpy(), bitorder="little").tobytes(),
        ids=pack(sent.numpy(), _id_levels(vocabulary)),
        codes=prompt_codes,
    )


def read_text(message: pb.Text, vocabulary: int) -> TextBatch:
    """The inverse of `text_message`. Raises CodecError for ids outside the vocabulary."""
    lengths = torch.tensor(message.lengths, dtype=torch.int64)
    count = int(lengths.sum())
    bits = np.unpackbits(np.frombuffer(message.answers, np.uint8), count=count, bitorder="little")
    answers = torch.from_numpy(bits.astype(bool))
    known = answers if message.HasField("codes") else torch.ones(count, dtype=torch.bool)
    ids = torch.zeros(count, dtype=torch.int64)
    received = unpack(message.ids, int(known.sum()), _id_levels(vocabulary)).astype(np.int64)
    if received.size and received.max() >= vocabulary:
        raise CodecError(f"text.ids: token {received.max()} is outside the vocabulary of {vocabulary}")
    ids[known] = torch.from_numpy(received)
    image_at, questions = (torch.tensor(part, dtype=torch.int64) for part in (message.image_at, message.questions))
    image = torch.repeat_interleave(torch.arange(len(questions)), questions)
    return TextBatch(ids, lengths, image_at, image, answers)


def _id_levels(vocabulary: int) -> int:
    return 1 << max(1, (vocabulary - 1).bit_length())
