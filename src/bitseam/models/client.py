"""The client's model: the vision half and the sending end of each stream.

Shapes: I images, M image tokens, N text tokens without padding, A of them answers, D language width, C code channels.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from bitseam import config
from bitseam.errors import ModelError
from bitseam.models.vision.half import VisionHalf
from bitseam.quant import Quantized
from bitseam.streams import Sender, build_streams
from bitseam.text.batch import TextBatch
from bitseam.text.symbols import register_dictionary


class ClientModel(nn.Module):
    """streams: a `Sender` of each, by name.

    embedding: looks tokens up, (N,) -> (N, D), frozen, the language model's own; needed where prompts cross as codes
    alone.
    """

    def __init__(self, half: VisionHalf, recipe: config.Recipe, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.vision = half
        self.streams = nn.ModuleDict(build_streams(Sender, recipe.streams, recipe.seam.width))
        register_dictionary(self)
        self.embedding = None
        if self.hides_prompts:
            if embedding is None:
                raise ModelError("streams.text: the client needs the language model's token embedding")
            self.embedding = embedding.requires_grad_(False)

    @property
    def hides_prompts(self) -> bool:
        """Whether prompts cross as codes, and their ids stay here."""
        return "text" in self.streams

    def senders(self) -> Mapping[str, Sender]:
        """The streams, by name."""
        return self.streams  # type: ignore[return-value]

    def use_asked(self) -> None:
        """Quantize and code at the rate that questions are asked at."""
        for sender in self.senders().values():
            sender.use(sender.settings.rate)

    def features(self, features: Tensor, text: TextBatch) -> dict[str, Tensor]:
        """What each stream is to carry: tower features (I, M, Dv) -> (I, M, D), the prompt's tokens -> (N - A, D)."""
        carried = {"image": self.vision(features)}
        if self.embedding is not None:
            ids = text.ids[~text.answers].to(next(self.embedding.parameters()).device)
            carried["text"] = self.embedding(ids)
        return carried

    def forward(self, features: Tensor, text: TextBatch) -> dict[str, Quantized]:
        """Tower features (I, M, Dv) and a batch -> levels (..., C) of each stream, at the rates in use."""
        carried = self.features(features, text)
        return {name: self.senders()[name](x) for name, x in carried.items()}
