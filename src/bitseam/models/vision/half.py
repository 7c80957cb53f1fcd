"""The client half of a vision-language model: vision tower and connector. Knows nothing of the language model.

Shapes: B images, each cut into k x k crops of S x S pixels once framed, m tokens of a crop, M = k^2 m of an image, Dv
width of the tower's tokens, D language width. An image that is not cut is its own only crop: k = 1.

    images -> pixels (B k^2, 3, S, S) -> tower (B k^2, m, Dv) -> features (B, M, Dv) -> connector -> (B, M, D)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from bitseam import config
from bitseam.errors import ModelError, first_sentence
from bitseam.models.vision.connector import Whiten, fresh_connector
from bitseam.models.vision.framing import Framing, framing, own_framing
from bitseam.models.vision.llava import LlavaTower, LlavaVision
from bitseam.models.vision.pictures import cut_into_crops, middle, upright_rgb
from bitseam.models.vision.proof import check_takes_images, prove_llava, prove_tower
from bitseam.models.vision.tower import Cut, PatchTower, set_training
from bitseam.models.weights import Loaded, errors_of, load_float32


class VisionHalf(nn.Module):
    """Vision tower + connector + image processor. crops: k, along each edge of an image."""

    tower: PatchTower | LlavaTower

    def __init__(
        self,
        tower: PatchTower | LlavaTower,
        connector: nn.Module,
        processor: Any,
        framing: Framing,
        crops: int = 1,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.connector = connector
        self.processor = processor
        self.framing = framing
        self.crops = crops

    @property
    def tokens(self) -> int:
        """M, of an image."""
        return self.tower.tokens * self.crops**2

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """B images -> (B k^2, 3, S, S), the crops of each image together and row by row; see `crop_pixels`.

        Raises DataError for an image that is too small to be cut (`bitseam.models.vision.pictures.cut_into_crops`).
        """
        return self.crop_pixels([crop for image in images for crop in cut_into_crops(upright_rgb(image), self.crops)])

    def crop_pixels(self, crops: Sequence[Image.Image]) -> Tensor:
        """Crops -> (crops, 3, S, S). Each is a picture of its own to the checkpoint's processor, which resizes and
        normalises it, with its framing scaled."""
        rgb = [middle(upright_rgb(crop), self.processor, self.framing) for crop in crops]
        return self.processor(images=rgb, return_tensors="pt", **self.framing)["pixel_values"]

    def train(self, mode: bool = True) -> VisionHalf:
        """A tower that is not tuned stays in evaluation mode: dropout would change what it says of an image."""
        super().train(mode)
        set_training(self.tower, mode and self._tuned)
        return self

    @property
    def facts(self) -> dict[str, Any]:
        """What the proof at load found out, as `half_from_tower` or `half_from_llava` wants it."""
        return {"tokens": self.tower.tokens} if isinstance(self.tower, LlavaTower) else asdict(self.tower.cut)

    @property
    def _tuned(self) -> bool:
        return any(p.requires_grad for p in self.tower.parameters())

    def preprocessing(self) -> VisionHalf:
        """This half without its weights: enough for `pixels`, and little to hand to another process."""
        light = copy.copy(self)
        light._modules = {}
        return light

    def settings(self) -> dict[str, Any]:
        """All beside weights and code that decides which features the tower has for a crop."""
        plain = {k: v for k, v in vars(self.tower).items() if isinstance(v, int | float | str) and k != "training"}
        cfg: Any = next((module.config for module in self.tower.modules() if hasattr(module, "config")), None)
        model = cfg.to_dict() if cfg is not None else {}
        for name in ("_name_or_path", "transformers_version"):  # where it came from is not what it is
            model.pop(name, None)
        return {
            "tower": plain,
            "model": model,
            "processor": self.processor.to_dict(),
            "facts": self.facts,
            "framing": self.framing,
        }

    def features(self, pixels: Tensor) -> Tensor:
        """(B k^2, 3, S, S), as of `pixels` -> (B, M, Dv); without gradient where the tower is frozen."""
        with torch.set_grad_enabled(self._tuned and torch.is_grad_enabled()):
            return self.join(self.tower(pixels).unflatten(0, (-1, self.crops**2)))

    def join(self, features: Tensor) -> Tensor:
        """Tokens of the k^2 crops of images (B, k^2, m, Dv) -> of the images (B, M, Dv), row by row over each image.

        That is the order in which a tower would give the tokens of the whole image at k times the pixels, so that the
        tokens before and above one are its neighbours in the image, across the edges of crops too (as LLaVA-NeXT
        arranges its tiles).
        """
        if self.crops == 1:
            return features[:, 0]
        k, side = self.crops, math.isqrt(features.shape[2])
        grid = features.reshape(len(features), k, k, side, side, -1).transpose(2, 3)  # rows of tokens before crops
        return grid.reshape(len(features), self.tokens, -1)

    def calibrate(self, features: Tensor) -> None:
        """Fit a fresh connector to the scale of features (B, M, Dv); a LLaVA's own stays as it is."""
        for module in self.connector.modules():
            if isinstance(module, Whiten):
                module.calibrate(features)

    def forward(self, features: Tensor) -> Tensor:
        """(B, M, Dv) -> (B, M, D)."""
        return self.connector(features)


def load_vision_half(settings: config.Client, width: int) -> VisionHalf:
    """Build the client half from a vision tower or a LLaVA, in float32; `width` D is that of the language model.

    The checkpoint proves itself (`bitseam.models.vision.proof`). Raises ModelError where it cannot be loaded,
    cannot be cut or does not fit.
    """
    name = f"client.checkpoint {settings.checkpoint!r}"
    with errors_of(name):
        cfg = AutoConfig.from_pretrained(settings.checkpoint, trust_remote_code=False)
    with errors_of(f"{name} ({cfg.model_type})"):
        half = (_from_llava if cfg.model_type == "llava" else _from_tower)(settings, width, cfg)
    if not settings.tune_vision:
        half.tower.requires_grad_(False)
    return half.train()


def suiting_pictures(checkpoint: str) -> tuple[int, int] | None:
    """`client.image_size` and `client.merge` that suit a tower, by its configuration and image processor alone, without
    its weights. None for a LLaVA, which brings both.

    Pictures are as large as the processor makes them, cut to whole patches. Neighbouring tokens are merged where the
    configuration tells that there is an even number along an edge: one patch size, one width, no stages. Raises
    ModelError where the checkpoint is neither, or its configuration or processor cannot be read.
    """
    with errors_of(f"client.checkpoint {checkpoint!r}"):
        cfg = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        if cfg.model_type == "llava":
            return None
        with torch.device("meta"):
            check_takes_images(_vision(AutoModel.from_config(cfg)))
        side, _ = own_framing(_processor(checkpoint))
    tower = getattr(cfg, "vision_config", cfg)
    patch = getattr(tower, "patch_size", None)
    if not isinstance(patch, int) or not isinstance(getattr(tower, "hidden_size", None), int):
        return side, 1
    staged = hasattr(tower, "depths")
    return side - side % patch, 1 if staged or side // patch % 2 else 2


def _from_tower(settings: config.Client, width: int, cfg: Any) -> VisionHalf:
    with torch.device("meta"):  # before any weight is read
        check_takes_images(_vision(AutoModel.from_config(cfg)))
    loaded = load_float32(AutoModel, settings.checkpoint)
    tower = prove_tower(_vision_part(loaded), settings.hidden_layer, settings.image_size, settings.merge)
    return _around(tower, settings, width, _processor(settings.checkpoint))


def _from_llava(settings: config.Client, width: int, cfg: Any) -> VisionHalf:
    if cfg.text_config.hidden_size != width:
        raise ModelError(f"seam.width is {width}, but this LLaVA's is {cfg.text_config.hidden_size}")
    if settings.crops != 1:
        raise ModelError(
            f"client.crops is {settings.crops}, but a LLaVA has learned from pictures that are not cut: leave it at 1, "
            "or give a vision tower"
        )
    processor = _processor(settings.checkpoint)
    side, fitted = own_framing(processor)
    loaded = load_float32(LlavaVision, settings.checkpoint)
    connector = loaded.model.take_connector()
    return VisionHalf(prove_llava(loaded, side), connector, processor, fitted)


def _processor(checkpoint: str) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # as in `errors_of`
        why = "it needs torchvision: pip install torchvision" if "torchvision" in str(error) else first_sentence(error)
        raise ModelError(f"its image processor, preprocessor_config.json, cannot be loaded: {why}") from error


def _vision(model: Any) -> Any:
    """CLIP, SigLIP and their kind carry a text tower along; models that write text are no such pair."""
    return model.vision_model if hasattr(model, "get_text_features") and hasattr(model, "vision_model") else model


def _vision_part(loaded: Loaded) -> Loaded:
    model = _vision(loaded.model)
    prefix = "" if model is loaded.model else "vision_model."
    return Loaded(model, frozenset(n.removeprefix(prefix) for n in loaded.missing if n.startswith(prefix)))


def half_from_tower(
    model: Any, settings: config.Client, width: int, processor: Any, facts: Mapping[str, Any]
) -> VisionHalf:
    """A client half around a tower that was proved before; processor: None where none is at hand yet."""
    tower = PatchTower(model, settings.hidden_layer, settings.merge, Cut(**facts))
    return _around(tower, settings, width, processor)


def _around(tower: PatchTower, settings: config.Client, width: int, processor: Any) -> VisionHalf:
    connector = fresh_connector(tower.cut.width, settings.merge, settings.connector_hidden or width, width)
    fitted = framing(processor, settings.image_size) if processor is not None else {}
    return VisionHalf(tower, connector, processor, fitted, settings.crops)


def half_from_llava(llava: LlavaVision, processor: Any, facts: Mapping[str, Any]) -> VisionHalf:
    """A client half around the vision half of a LLaVA that was proved before; processor: as of `half_from_tower`."""
    connector = llava.take_connector()
    tower = LlavaTower(llava, facts["tokens"], connector.linear_1.in_features)
    return VisionHalf(tower, connector, processor, own_framing(processor)[1] if processor is not None else {})
