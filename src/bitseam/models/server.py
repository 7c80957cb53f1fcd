"""The server half with what sits at the seam: projections and the language half.

Shapes: B sequences, I images, M image tokens, N text tokens without padding, A answer tokens, R rows of S columns as
laid out for the language model, D language width, C code channels.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from bitseam import config
from bitseam.errors import ModelError
from bitseam.models.language.half import LanguageHalf
from bitseam.models.layout import Layout, left_padded, packed, padded
from bitseam.streams.seam import build_projection
from bitseam.streams.tables import register_tables
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import register_dictionary


@dataclass(frozen=True)
class Ways:
    """How a language model is run: as plainly as can be, until `bitseam.models.proof` shows that less does as well.

    rows: sequences share rows (`packed`), have a row each (`padded`), or are computed one by one (`alone`). everywhere:
    the head computes all logits, not only those that are asked for. answers: to questions together, padded on the left
    (`together`), one by one (`alone`), or by a whole forward pass a token (`uncached`). positions: how long a row may
    be; None for any length.
    """

    rows: Literal["packed", "padded", "alone"] = "alone"
    everywhere: bool = False
    answers: Literal["together", "alone", "uncached"] = "alone"
    positions: int | None = None


class ServerModel(nn.Module):
    """Level projections + language half. ways: how it is run."""

    def __init__(self, half: LanguageHalf, seam: config.Seam) -> None:
        super().__init__()
        if half.width != seam.width:
            raise ModelError(f"seam.width is {seam.width}, but the language model's embeddings have {half.width}")
        self.language = half
        self.ways = Ways()
        self.image_projection = build_projection(seam.image_up, seam.width)
        self.text_projection = build_projection(seam.text_up, seam.width) if seam.text == "codes" else None
        register_tables(self, seam)
        register_dictionary(self)

    def train(self, mode: bool = True) -> ServerModel:
        """Frozen weights stay in evaluation mode, also below adapters, whose own dropout is on in training."""
        super().train(mode)
        language = self.language.model
        if not all(p.requires_grad for p in language.parameters()):
            language.eval()
            for name, module in language.named_modules():
                if name.endswith("lora_dropout"):
                    module.train(mode)
        return self

    def embed(self, text: TextBatch, image: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        """Text and image levels -> embeddings of the text (N, D) and of the images (I, M, D).

        image: levels (I, M, C); prompt: levels (N - A, C) where the prompt crossed as codes.
        """
        device = image.device
        image_rows = self.image_projection(image) if self.image_projection is not None else image
        text_rows = self.language.embed(text.ids.to(device))
        if prompt is not None:
            rows = self.text_projection(prompt) if self.text_projection is not None else prompt
            text_rows = text_rows.index_put((torch.nonzero(~text.answers.to(device))[:, 0],), rows.to(text_rows.dtype))
        return text_rows, image_rows

    def answer_logits(self, text: TextBatch, image: Tensor, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (A, V) that predict the answer tokens, and their ids (A,). Nothing else meets the vocabulary."""
        logits = self.logits(text, *self.embed(text, image, prompt), self.ways, ids_known=prompt is None)
        return logits, text.ids.to(image.device)[text.answers.to(image.device)]

    def logits(self, text: TextBatch, text_rows: Tensor, image_rows: Tensor, ways: Ways, ids_known: bool) -> Tensor:
        """Embeddings as of `embed` -> logits (A, V) that predict the answer tokens. ids_known: as for `packed`."""
        tokens, device = image_rows.shape[1], image_rows.device
        shared = ways.rows == "packed"
        layout = (packed(text, tokens, ids_known) if shared else padded(text, tokens)).to(device)
        embeds = _place(text_rows, image_rows, layout)
        places = layout.previous[:, text.answers.to(device)]
        if shared:
            mask = self._masks(layout, embeds.dtype)
            return self.language.logits(embeds, places, mask, layout.position, ways.everywhere)
        if ways.rows == "padded":
            return self.language.logits(embeds, places, everywhere=ways.everywhere)
        parts = []
        for b, size in enumerate(layout.padding_mask.sum(1).tolist()):
            column = places[1, places[0] == b]
            place = torch.stack([torch.zeros_like(column), column])
            parts.append(self.language.logits(embeds[b : b + 1, :size], place, everywhere=ways.everywhere))
        return torch.cat(parts)

    @torch.no_grad()
    def generate(
        self, text: TextBatch, image: Tensor, prompt: Tensor | None, longest: int, end: int, streamer: Any = None
    ) -> Tensor:
        """Greedy answers to B questions -> (B, at most `longest`), each up to one of the model's stop tokens or `end`,
        for which `end` stands; a streamer sees (B,) at a time."""
        rows, stops = self.embed(text, image, prompt), {*self.language.stops, end}
        return self.answers(text, *rows, self.ways, longest, stops, end, streamer)

    def answers(
        self,
        text: TextBatch,
        text_rows: Tensor,
        image_rows: Tensor,
        ways: Ways,
        longest: int,
        stops: Collection[int],
        end: int,
        streamer: Any = None,
    ) -> Tensor:
        """As `generate`, of embeddings as of `embed`, ended by `stops` alone."""
        layout = left_padded(text, image_rows.shape[1]).to(image_rows.device)
        embeds, mask = _place(text_rows, image_rows, layout), layout.padding_mask

        def alone(b: int, told: Any = None) -> Tensor:
            size = int(mask[b].sum())
            if ways.answers == "uncached":
                return self.language.generate_without_cache(embeds[b : b + 1, -size:], longest, stops, end, told)
            return self.language.generate(embeds[b : b + 1, -size:], mask[b : b + 1, -size:], longest, stops, end, told)

        if len(mask) == 1:
            return alone(0, streamer)
        if ways.answers == "together":
            return self.language.generate(embeds, mask, longest, stops, end, streamer)
        told = [alone(b)[0] for b in range(len(mask))]
        tokens = pad_sequence(told, batch_first=True, padding_value=end)
        if streamer is not None:
            for column in tokens.T.cpu():
                streamer.put(column)
            streamer.end()
        return tokens

    def loss(self, text: TextBatch, image: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Cross-entropy summed over answer tokens, nats. Raises ModelError where the model's own loss is another."""
        self.language.require_plain_loss()
        logits, ids = self.answer_logits(text, image, prompt)
        return cross_entropy(logits, ids, reduction="sum")

    def _masks(self, layout: Layout, dtype: torch.dtype) -> Tensor | dict[str, Tensor | None] | None:
        """As transformers takes them: one for each kind of layers only where their windows differ."""
        kinds = self.language.windows(layout.position.shape[1])
        if not layout.mixed:
            return None  # the model's own masks hold its windows
        if "" in kinds or not any(kinds.values()):
            return layout.attention_mask(dtype, kinds.get(""))
        return {kind: layout.attention_mask(dtype, overlay) for kind, overlay in kinds.items()}


def _place(text_rows: Tensor, image_rows: Tensor, layout: Layout) -> Tensor:
    """Embeddings (N, D) and (I, M, D) -> rows (R, S, D), laid out."""
    row, column = layout.text[:, layout.first]
    image_row, image_column = layout.image_place
    embeds = text_rows.new_zeros(*layout.position.shape, text_rows.shape[-1])
    embeds = embeds.index_put((row, column), text_rows[layout.first])
    return embeds.index_put((image_row, image_column), image_rows[layout.images].to(embeds.dtype))
