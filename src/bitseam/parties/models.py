"""The halves with what sits at the seam: quantizers on the client, projections on the server.

Shapes: B sequences, I images, M image tokens, N text tokens without padding, A answer tokens, R rows of S columns as
laid out for the language model, D language width, C code channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bitseam import config
from bitseam.errors import ModelError
from bitseam.halves.client import ClientHalf
from bitseam.halves.server import ServerHalf
from bitseam.parties.layout import Layout, left_padded, packed
from bitseam.parties.seam import build_projection, build_quantizer
from bitseam.parties.tables import register_tables
from bitseam.parties.text import TextBatch, register_dictionary
from bitseam.quant import Quantized


class ClientModel(nn.Module):
    """Vision half + image quantizer, and where prompts cross as codes, the token embedding + text quantizer.

    embedding: (V, D), frozen, the language model's own; needed for text codes alone.
    """

    def __init__(self, half: ClientHalf, seam: config.Seam, embedding: Tensor | None = None) -> None:
        super().__init__()
        self.vision = half
        self.image_quantizer = build_quantizer(seam.image_up, seam.width)
        register_tables(self, seam)
        register_dictionary(self)
        self.text_quantizer = None
        if seam.text == "codes":
            if embedding is None:
                raise ModelError("seam.text is 'codes': the client needs the language model's token embedding")
            self.embedding = nn.Embedding.from_pretrained(embedding, freeze=True)
            self.text_quantizer = build_quantizer(seam.text_up, seam.width)

    def image(self, features: Tensor) -> Quantized:
        """Tower features (I, M, Dv) -> levels (I, M, C)."""
        return self.image_quantizer(self.vision(features))

    def text(self, text: TextBatch) -> Quantized | None:
        """The prompt's tokens -> levels (N - A, C), or None where prompts cross as ids."""
        if self.text_quantizer is None:
            return None
        return self.text_quantizer(self.prompt_features(text))

    def prompt_features(self, text: TextBatch) -> Tensor:
        """The prompt's tokens -> their embeddings (N - A, D); for text codes alone."""
        return self.embedding(text.ids[~text.answers].to(self.embedding.weight.device))


class ServerModel(nn.Module):
    """Level projections + language half."""

    def __init__(self, half: ServerHalf, seam: config.Seam) -> None:
        super().__init__()
        if half.width != seam.width:
            raise ModelError(f"seam.width is {seam.width}, but the language model's hidden size is {half.width}")
        self.language = half
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

    def assemble(self, text: TextBatch, image: Tensor, prompt: Tensor | None, layout: Layout) -> Tensor:
        """Text and image levels -> embeddings (R, S, D), laid out.

        image: levels (I, M, C); prompt: levels (N - A, C) where the prompt crossed as codes.
        """
        device = image.device
        image_rows = self.image_projection(image) if self.image_projection is not None else image
        text_rows = self.language.embed(text.ids.to(device))
        if prompt is not None:
            rows = self.text_projection(prompt) if self.text_projection is not None else prompt
            text_rows = text_rows.index_put((torch.nonzero(~text.answers.to(device))[:, 0],), rows.to(text_rows.dtype))
        row, column = layout.text[:, layout.first]
        image_row, image_column = layout.image_place
        embeds = text_rows.new_zeros(*layout.position.shape, text_rows.shape[-1])
        embeds = embeds.index_put((row, column), text_rows[layout.first])
        return embeds.index_put((image_row, image_column), image_rows[layout.images].to(embeds.dtype))

    def answer_logits(self, text: TextBatch, image: Tensor, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (A, V) that predict the answer tokens, and their ids (A,). Nothing else meets the vocabulary."""
        layout = packed(text, image.shape[1], ids_known=prompt is None).to(image.device)
        embeds = self.assemble(text, image, prompt, layout)
        answers = text.answers.to(image.device)
        row, column = layout.text[:, answers]
        # The state before a token predicts it; a token at column 0 is predicted by nothing and never an answer.
        hidden = self.language.hidden(embeds, layout.attention_mask(embeds.dtype), layout.position)[row, column - 1]
        return self.language.logits(hidden), text.ids.to(image.device)[answers]

    @torch.no_grad()
    def generate(
        self, text: TextBatch, image: Tensor, prompt: Tensor | None, longest: int, end: int, streamer: Any = None
    ) -> Tensor:
        """Greedy answers to B questions -> (B, at most `longest`); a streamer sees (B,) at a time."""
        layout = left_padded(text, image.shape[1]).to(image.device)
        embeds = self.assemble(text, image, prompt, layout)
        return self.language.generate(embeds, layout.padding_mask, longest, end, streamer)

    def loss(self, text: TextBatch, image: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Cross-entropy summed over answer tokens, nats."""
        logits, ids = self.answer_logits(text, image, prompt)
        return cross_entropy(logits, ids, reduction="sum")
