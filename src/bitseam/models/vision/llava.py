"""The vision half of a LLaVA 1.5: tower and connector, with transformers' own choice of layers and tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration


class LlavaVision(LlavaForConditionalGeneration):
    """Loads only the vision half of a LLaVA: transformers builds on the meta device, so what is cut off here
    is never read from the file nor given memory."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {}
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"language_model", r"lm_head"]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.model.language_model = nn.Identity()
        self.lm_head = nn.Identity()

    def take_connector(self) -> Any:
        """The connector, taken out, so that features come out before it."""
        connector = self.model.multi_modal_projector
        self.model.multi_modal_projector = nn.Identity()
        return connector


class LlavaTower(nn.Module):
    """Features of a LLaVA's tower before its connector.

    Shapes: B images of S x S pixels, M image tokens, Dv width (of all layers together where it takes several).
    """

    def __init__(self, llava: LlavaVision, tokens: int, width: int) -> None:
        super().__init__()
        self.llava = llava
        self.tokens = tokens
        self.width = width

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, M, Dv)."""
        return torch.stack(list(self.llava.get_image_features(pixel_values=pixels).pooler_output))
