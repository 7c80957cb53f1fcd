"""The client half with what sits at the seam: the vision half and the quantizers.

Shapes: B sequences, I images, M image tokens, N text tokens without padding, A answer tokens, R rows of S columns as
laid out for the language model, D language width, C code channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from bitseam import config
from bitseam.errors import ModelError
from bitseam.models.vision.half import VisionHalf
from bitseam.quant import Quantized
from bitseam.streams.seam import build_quantizer
from bitseam.streams.tables import register_tables
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import register_dictionary


class ClientModel(nn.Module):
    """Vision half + image quantizer, and where prompts cross as codes, the token embedding + text quantizer.

    embedding: looks tokens up, (N,) -> (N, D), frozen, the language model's own; needed for text codes alone.
    """

    def __init__(self, half: VisionHalf, seam: config.Seam, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.vision = half
        self.image_quantizer = build_quantizer(seam.image_up, seam.width)
        register_tables(self, seam)
        register_dictionary(self)
        self.text_quantizer = None
        if seam.text == "codes":
            if embedding is None:
                raise ModelError("seam.text is 'codes': the client needs the language model's token embedding")
            self.embedding = embedding.requires_grad_(False)
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
        return self.embedding(text.ids[~text.answers].to(next(self.embedding.parameters()).device))
