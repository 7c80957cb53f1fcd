"""Vision towers of transformers, as a stack of patch tokens.

Shapes: B images of S x S pixels, T tokens of a hidden state, N = side^2 patches, m the merge factor, M = N / m^2 image
tokens, Dv tower width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitseam.models.vision.early import input_of


@dataclass(frozen=True)
class Cut:
    """Where the patch tokens of one hidden layer are; found and proved by `bitseam.models.vision.proof.prove_tower`.

    side: patches along an edge. first: class and register tokens before them. width: Dv. norm: the module that is the
    tower's final norm, where it fits this layer and is not in it already, else "". arguments: of the forward pass, to
    be True. ordered: the forward pass takes the order in which it keeps patches (masked autoencoders). end: the module
    that is given this layer's state, so that nothing from it on need run; "" where the whole forward pass must.
    """

    side: int
    first: int
    width: int
    norm: str
    arguments: tuple[str, ...] = ()
    ordered: bool = False
    end: str = ""


class PatchTower(nn.Module):
    """A vision model's patch tokens at one hidden layer, m x m neighbours concatenated into one token.

    The tower's own final norm is applied to whichever layer is taken, as DINOv2's `get_intermediate_layers(norm=True)`
    does (arXiv 2304.07193): the norm between the last hidden state and the model's `last_hidden_state`, or, where the
    model norms its class token alone (CLIP), that one. States come as they are where the model has no such norm
    (ConvNeXt; BEiT, which norms the mean of its tokens), or where it is not of the layer's width (Swin's early stages).
    Class, register and detection tokens are left out. Layers behind the one that is taken do not run.
    """

    def __init__(self, model: Any, hidden_layer: int, merge: int, cut: Cut) -> None:
        super().__init__()
        self.model = model
        self.hidden_layer = hidden_layer
        self.merge = merge
        self.cut = cut
        self.tokens = (cut.side // merge) ** 2
        self.width = cut.width * merge**2

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, M, Dv m^2)."""
        cut = self.cut
        state = as_tokens(self._state(pixels))
        if cut.norm:
            state = self.model.get_submodule(cut.norm)(state)
        patches = state[:, cut.first : cut.first + cut.side**2]
        b, m, s = patches.shape[0], self.merge, cut.side // self.merge
        grid = patches.reshape(b, s, m, s, m, -1).permute(0, 1, 3, 2, 4, 5)
        return grid.reshape(b, self.tokens, self.width)

    def _state(self, pixels: Tensor) -> Tensor:
        given = {"pixel_values": pixels, **extras(self.cut, len(pixels), pixels.device)}
        if self.cut.end:
            return input_of(self.cut.end, self.model, given)
        return self.model(**given, output_hidden_states=True).hidden_states[self.hidden_layer]


def set_training(tower: nn.Module, mode: bool) -> None:
    """Into training mode, or out of it, without batch norms: with statistics of the batch, an image's features would
    depend on the images beside it."""
    tower.train(mode)
    for module in tower.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def extras(cut: Cut, count: int, device: torch.device) -> dict[str, Any]:
    """What the forward pass of `count` images takes beside pixels."""
    named: dict[str, Any] = dict.fromkeys(cut.arguments, True)
    if cut.ordered:  # by rank of this "noise": as they come
        named["noise"] = torch.arange(cut.side**2, device=device).expand(count, -1)
    return named


def as_tokens(state: Tensor) -> Tensor:
    """(B, T, Dv), or a map (B, Dv, h, w) -> (B, T, Dv), row by row."""
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
