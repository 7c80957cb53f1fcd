"""The client half of a vision-language model: vision tower and connector. Knows nothing of the language model.

Shapes: B images, N patches, m the merge factor, M = N / m^2 image tokens, Dv tower width, D language width.

    images -> pixels (B, 3, H, W) -> tower -> features (B, M, Dv m^2) -> connector -> (B, M, D)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, LlavaForConditionalGeneration

from bitseam import config
from bitseam.errors import ModelError


class PatchTower(nn.Module):
    """A vision transformer's patch tokens at one hidden layer, m x m neighbours concatenated into one token.

    The tower's own final norm is applied to whichever layer is taken, as DINOv2's `get_intermediate_layers(norm=True)`
    does (arXiv 2304.07193). Tokens that are no patches (class, registers) come first and are left out by counting from
    the end, so that a tower without a class token loses no patch.
    """

    def __init__(self, model: nn.Module, hidden_layer: int, image_size: int, merge: int) -> None:
        super().__init__()
        self.model = model
        self.hidden_layer = hidden_layer
        self.merge = merge
        cfg: Any = model.config
        if image_size % (cfg.patch_size * merge):
            raise ModelError(
                f"client.image_size {image_size} must be a multiple of patch size x merge = {cfg.patch_size * merge}"
            )
        layers = cfg.num_hidden_layers
        if not -layers - 1 <= hidden_layer <= layers:
            raise ModelError(f"client.hidden_layer {hidden_layer}: this tower has {layers} layers")
        self.side = image_size // cfg.patch_size
        self.tokens = (self.side // merge) ** 2
        self.patch_width = cfg.hidden_size
        self.width = self.patch_width * merge**2

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, Dv m^2)."""
        out = self.model(pixel_values=pixels, output_hidden_states=True)
        hidden = out.hidden_states[self.hidden_layer]
        norm = getattr(self.model, "layernorm", None) or getattr(self.model, "post_layernorm", None)
        patches = (norm(hidden) if norm is not None else hidden)[:, -(self.side**2) :]
        b, m, s = patches.shape[0], self.merge, self.side // self.merge
        grid = patches.reshape(b, s, m, s, m, -1).permute(0, 1, 3, 2, 4, 5)
        return grid.reshape(b, self.tokens, self.width)


class LlavaTower(nn.Module):
    """The vision tower of a LLaVA checkpoint, with transformers' own choice of layer and tokens."""

    def __init__(self, llava: LlavaVision) -> None:
        super().__init__()
        self.llava = llava
        vision = llava.config.vision_config
        dropped = 1 if llava.config.vision_feature_select_strategy == "default" else 0
        prefix = 1 if hasattr(llava.model.vision_tower, "pre_layrnorm") else 0  # CLIP's class token
        self.tokens = (vision.image_size // vision.patch_size) ** 2 + prefix - dropped
        self.width = llava.model.connector_width

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, Dv)."""
        return torch.stack(list(self.llava.get_image_features(pixel_values=pixels).pooler_output))


class LlavaVision(LlavaForConditionalGeneration):
    """Loads only the vision half of a LLaVA: transformers builds on the meta device, so what is cut off here
    is never read from the file nor given memory."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {}
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"language_model", r"lm_head"]

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        self.model.language_model = nn.Identity()
        self.lm_head = nn.Identity()


class Whiten(nn.Module):
    """Patch channels without correlation and of unit deviation, by statistics taken once before training: ZCA-cor
    whitening (Kessy, Lewin and Strimmer, arXiv 1512.00809), shrunk so that directions of no variance stay small.

    A few channels of a vision transformer vary far more than the rest (arXiv 2309.16588), and many vary together. Left
    so, they would fill every output of a fresh connector, and what the others tell would fall below a quantizer's step.
    """

    SHRINKAGE = 0.03  # of a unit variance
    mean: Tensor
    weight: Tensor

    def __init__(self, width: int) -> None:
        """width: of one patch; a token is one patch or several side by side."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("weight", torch.eye(width))

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Take the statistics of features (..., Dv m^2)."""
        patches = features.reshape(-1, len(self.mean))
        std, mean = torch.std_mean(patches, dim=0, correction=0)
        std = std.clamp_min(1e-4)
        unit = (patches - mean) / std
        variance, direction = torch.linalg.eigh(unit.T @ unit / len(unit))
        root = (direction * (variance.clamp_min(0) + self.SHRINKAGE).rsqrt()) @ direction.T
        self.mean.copy_(mean)
        self.weight.copy_(root / std[:, None])

    def forward(self, features: Tensor) -> Tensor:
        """(..., Dv m^2), same shape."""
        patches = features.unflatten(-1, (-1, len(self.mean)))
        return ((patches - self.mean) @ self.weight).flatten(-2)


class ClientHalf(nn.Module):
    """Vision tower + connector + image processor."""

    tower: PatchTower | LlavaTower

    def __init__(
        self, tower: PatchTower | LlavaTower, connector: nn.Module, processor: Any, size: dict[str, Any]
    ) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.processor = processor
        self._size = size

    @property
    def tokens(self) -> int:
        return self.tower.tokens

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """B images -> (B, 3, H, W), resized and normalised as the checkpoint's processor says."""
        rgb = [image.convert("RGB") for image in images]
        return self.processor(images=rgb, return_tensors="pt", **self._size)["pixel_values"]

    def preprocessing(self) -> ClientHalf:
        """This half without its weights: enough for `pixels`, and little to hand to another process."""
        light = copy.copy(self)
        light._modules = {}
        return light

    def settings(self) -> dict[str, Any]:
        """All beside weights and code that decides which features an image has."""
        plain = {k: v for k, v in vars(self.tower).items() if isinstance(v, int | float | str) and k != "training"}
        cfg: Any = next((module.config for module in self.tower.modules() if hasattr(module, "config")), None)
        model = cfg.to_dict() if cfg is not None else {}
        for name in ("_name_or_path", "transformers_version"):  # where it came from is not what it is
            model.pop(name, None)
        return {"tower": plain, "model": model, "processor": self.processor.to_dict(), "size": self._size}

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, Dv m^2); without gradient where the tower is frozen."""
        tuned = any(p.requires_grad for p in self.tower.parameters())
        with torch.set_grad_enabled(tuned and torch.is_grad_enabled()):
            return self.tower(pixels)

    def calibrate(self, features: Tensor) -> None:
        """Fit a fresh connector to the scale of features (B, M, Dv m^2); a LLaVA's own stays as it is."""
        for module in self.connector.modules():
            if isinstance(module, Whiten):
                module.calibrate(features)

    def forward(self, features: Tensor) -> Tensor:
        """(B, M, Dv m^2) -> (B, M, D)."""
        return self.connector(features)


def load_client_half(settings: config.Client, width: int) -> ClientHalf:
    """Build the client half from a vision tower or a LLaVA; `width` D is that of the language model.

    Raises ModelError where the checkpoint cannot be loaded or does not fit.
    """
    try:
        cfg = AutoConfig.from_pretrained(settings.checkpoint)
        build = _from_llava if cfg.model_type == "llava" else _from_parts
        half = build(settings, width)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"client.checkpoint {settings.checkpoint!r} cannot be loaded: {error}") from error
    half.tower.requires_grad_(settings.tune_vision)
    half.tower.train(settings.tune_vision)
    return half


def _from_parts(settings: config.Client, width: int) -> ClientHalf:
    model = AutoModel.from_pretrained(settings.checkpoint)
    model = getattr(model, "vision_model", model)  # CLIP and SigLIP carry a text tower along
    return half_from_tower(model, settings, width, AutoImageProcessor.from_pretrained(settings.checkpoint))


def half_from_tower(model: nn.Module, settings: config.Client, width: int, processor: Any) -> ClientHalf:
    """A client half around a vision transformer, with a fresh two-layer GELU connector (arXiv 2310.03744)."""
    tower = PatchTower(model, settings.hidden_layer, settings.image_size, settings.merge)
    hidden = settings.connector_hidden or width
    layers = (nn.Linear(tower.width, hidden), nn.GELU(), nn.Linear(hidden, width))
    connector = nn.Sequential(Whiten(tower.patch_width), *layers)
    side = settings.image_size
    square = {"height": side, "width": side}
    shortest = getattr(processor, "do_center_crop", False)
    size = {"size": {"shortest_edge": side}, "crop_size": square} if shortest else {"size": square}
    return ClientHalf(tower, connector, processor, size)


def _from_llava(settings: config.Client, width: int) -> ClientHalf:
    processor = AutoImageProcessor.from_pretrained(settings.checkpoint)
    return half_from_llava(LlavaVision.from_pretrained(settings.checkpoint), width, processor)


def half_from_llava(llava: LlavaVision, width: int, processor: Any) -> ClientHalf:
    """A client half around the vision half of a LLaVA, connector and all."""
    if llava.config.text_config.hidden_size != width:
        raise ModelError(f"seam.width is {width}, but this LLaVA's is {llava.config.text_config.hidden_size}")
    connector = llava.model.multi_modal_projector
    llava.model.connector_width = connector.linear_1.in_features
    llava.model.multi_modal_projector = nn.Identity()  # so that the tower's features come out before the connector
    return ClientHalf(LlavaTower(llava), connector, processor, {})
