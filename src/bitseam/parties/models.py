"""The halves with what sits at the seam: quantizers on the client, projections on the server.

Shapes: B sequences, M image tokens, S padded length, N text tokens without padding, A answer tokens, D language width,
C code channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bitseam import config
from bitseam.errors import ModelError
from bitseam.halves.client import ClientHalf
from bitseam.halves.server import ServerHalf
from bitseam.parties.seam import build_projection, build_quantizer
from bitseam.parties.tables import register_tables
from bitseam.parties.text import TextBatch
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
        self.text_quantizer = None
        if seam.text == "codes":
            if embedding is None:
                raise ModelError("seam.text is 'codes': the client needs the language model's token embedding")
            self.embedding = nn.Embedding.from_pretrained(embedding, freeze=True)
            self.text_quantizer = build_quantizer(seam.text_up, seam.width)

    def image(self, features: Tensor) -> Quantized:
        """Tower features (B, M, Dv) -> levels (B, M, C)."""
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

    def assemble(
        self, text: TextBatch, image: Tensor, prompt: Tensor | None, left: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text and image levels -> embeddings (B, S, D), mask (B, S), and where each text token went (2, N).

        image: levels (B, M, C); prompt: levels (N - A, C) where the prompt crossed as codes; `left` pads on the left,
        as generation needs.
        """
        device = image.device
        image_rows = self.image_projection(image) if self.image_projection is not None else image
        text_rows = self.language.embed(text.ids.to(device))
        if prompt is not None:
            rows = self.text_projection(prompt) if self.text_projection is not None else prompt
            text_rows = text_rows.index_put((torch.nonzero(~text.answers.to(device))[:, 0],), rows.to(text_rows.dtype))

        batch, tokens = image.shape[:2]
        lengths, image_at = text.lengths.to(device), text.image_at.to(device)
        whole = lengths + tokens
        size = int(whole.max())
        shift = size - whole if left else torch.zeros_like(whole)
        row = torch.repeat_interleave(torch.arange(batch, device=device), lengths)
        starts = torch.cumsum(lengths, 0) - lengths
        within = torch.arange(len(row), device=device) - starts[row]
        column = within + tokens * (within >= image_at[row]) + shift[row]
        image_row = torch.arange(batch, device=device)[:, None].expand(batch, tokens)
        image_column = (image_at + shift)[:, None] + torch.arange(tokens, device=device)

        embeds = text_rows.new_zeros(batch, size, text_rows.shape[-1])
        embeds = embeds.index_put((row, column), text_rows)
        embeds = embeds.index_put((image_row, image_column), image_rows.to(embeds.dtype))
        position = torch.arange(size, device=device)[None]
        mask = (position >= shift[:, None]) & (position < (whole + shift)[:, None])
        return embeds, mask.long(), torch.stack([row, column])

    def answer_logits(self, text: TextBatch, image: Tensor, prompt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (A, V) that predict the answer tokens, and their ids (A,). Nothing else meets the vocabulary."""
        embeds, _, place = self.assemble(text, image, prompt)
        answers = text.answers.to(image.device)
        row, column = place[:, answers]
        # The state before a token predicts it; a token at column 0 is predicted by nothing and never an answer.
        hidden = self.language.hidden(embeds)[row, column - 1]
        return self.language.logits(hidden), text.ids.to(image.device)[answers]

    def loss(self, text: TextBatch, image: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Cross-entropy summed over answer tokens, nats."""
        logits, ids = self.answer_logits(text, image, prompt)
        return cross_entropy(logits, ids, reduction="sum")
