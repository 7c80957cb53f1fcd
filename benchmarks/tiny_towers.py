"""Vision towers and vision-language models of transformers, made tiny, with what is known of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf

SIDE, PATCH, WIDTH = 56, 14, 32
VIT = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
STAGES = {"image_size": 64, "depths": [1, 1, 1], "num_heads": [2, 2, 2], "embed_dim": 12, "window_size": 4}
MAPS = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 24]}


@dataclass(frozen=True)
class Tower:
    """A vision tower: norm is the module between its last hidden state and `last_hidden_state`, by its name here."""

    make: Callable[[], Any]
    norm: str = ""
    before: int = 0  # tokens before the patches
    side: int = SIDE
    processor: Callable[[int], Any] = lambda side: hf.ViTImageProcessorPil(size={"height": side, "width": side})
    forward: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = (-1, -2)


def cropping(side: int) -> Any:
    """Resize and crop as 256 / 224."""
    return hf.BitImageProcessorPil(
        size={"shortest_edge": side * 8 // 7}, crop_size={"height": side, "width": side}, do_center_crop=True
    )


def crop_of_shortest(side: int) -> Any:
    return hf.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def deit_crop(side: int) -> Any:
    size = side * 8 // 7
    return hf.DeiTImageProcessorPil(
        size={"height": size, "width": size}, crop_size={"height": side, "width": side}, do_center_crop=True
    )


def square(side: int) -> Any:
    return hf.SiglipImageProcessorPil(size={"height": side, "width": side})


def convnext(side: int) -> Any:
    return hf.ConvNextImageProcessorPil(size={"shortest_edge": side})


TOWERS = {
    "vit": Tower(lambda: hf.ViTModel(hf.ViTConfig(**VIT)), "layernorm", 1),
    "vit, patch_size [14, 14]": Tower(
        lambda: hf.ViTModel(hf.ViTConfig(**VIT | {"patch_size": [PATCH, PATCH]})), "layernorm", 1
    ),
    "deit": Tower(lambda: hf.DeiTModel(hf.DeiTConfig(**VIT)), "layernorm", 2, processor=deit_crop),
    "beit": Tower(lambda: hf.BeitModel(hf.BeitConfig(**VIT, use_relative_position_bias=True)), "", 1),
    "beit, normed tokens": Tower(
        lambda: hf.BeitModel(hf.BeitConfig(**VIT, use_mean_pooling=False, use_absolute_position_embeddings=True)),
        "layernorm",
        1,
    ),
    "data2vec-vision": Tower(lambda: hf.Data2VecVisionModel(hf.Data2VecVisionConfig(**VIT)), "", 1),
    "dinov2": Tower(lambda: hf.Dinov2Model(hf.Dinov2Config(**VIT)), "layernorm", 1, processor=cropping),
    "dinov2_with_registers": Tower(
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VIT, num_register_tokens=8)), "layernorm", 9
    ),
    "dinov3_vit": Tower(
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**VIT, num_register_tokens=4)), "norm", 5, processor=cropping
    ),
    "ijepa": Tower(lambda: hf.IJepaModel(hf.IJepaConfig(**VIT)), "layernorm"),
    "vit_msn": Tower(lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**VIT)), "layernorm", 1),
    "vit_mae": Tower(
        lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**VIT, mask_ratio=0.75)),
        "layernorm",
        1,
        forward={"noise": torch.arange(16.0)[None]},
    ),
    "clip_vision_model": Tower(
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT)), "post_layernorm", 1, processor=crop_of_shortest
    ),
    "clip": Tower(
        lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT | {"max_position_embeddings": 16}, vision_config=VIT)),
        "post_layernorm",
        1,
        processor=crop_of_shortest,
    ),
    "siglip_vision_model": Tower(
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**VIT)), "post_layernorm", processor=square
    ),
    "siglip": Tower(
        lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VIT)), "post_layernorm", processor=square
    ),
    "aimv2_vision_model": Tower(
        lambda: hf.Aimv2VisionModel(hf.Aimv2VisionConfig(**VIT, use_head=False)), "rms_norm", processor=crop_of_shortest
    ),
    "mlcd_vision_model": Tower(
        lambda: hf.MLCDVisionModel(hf.MLCDVisionConfig(**VIT | {"hidden_size": 32})), "post_layernorm", 1
    ),
    "pixio": Tower(lambda: hf.PixioModel(hf.PixioConfig(**VIT)), "layernorm", 8),
    "internvl_vision": Tower(lambda: hf.InternVLVisionModel(hf.InternVLVisionConfig(**VIT)), "", 1),
    "swin": Tower(lambda: hf.SwinModel(hf.SwinConfig(**STAGES)), "layernorm", side=64),
    "swinv2": Tower(lambda: hf.Swinv2Model(hf.Swinv2Config(**STAGES)), "layernorm", side=64),
    "focalnet": Tower(
        lambda: hf.FocalNetModel(
            hf.FocalNetConfig(image_size=64, depths=[1] * 3, embed_dim=12, focal_levels=[1] * 3, focal_windows=[3] * 3)
        ),
        "layernorm",
        side=64,
    ),
    "convnext": Tower(lambda: hf.ConvNextModel(hf.ConvNextConfig(**MAPS)), side=64, processor=convnext),
    "convnextv2": Tower(lambda: hf.ConvNextV2Model(hf.ConvNextV2Config(**MAPS)), side=64, processor=convnext),
    "resnet": Tower(
        lambda: hf.ResNetModel(hf.ResNetConfig(**MAPS, embedding_size=8)), side=64, processor=convnext
    ),
    "regnet": Tower(
        lambda: hf.RegNetModel(hf.RegNetConfig(**MAPS, embedding_size=8, groups_width=4)), side=64, processor=convnext
    ),
    "dinov3_convnext": Tower(
        lambda: hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(**MAPS, image_size=64)), "layer_norm", side=64
    ),
}  # fmt: skip

OTHERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "siglip2_vision_model": lambda: (
        hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**{k: v for k, v in VIT.items() if k != "image_size"})),
        hf.Siglip2ImageProcessorPil(),
    ),
    "videomae": lambda: (hf.VideoMAEModel(hf.VideoMAEConfig(**VIT)), hf.VideoMAEImageProcessorPil()),
    "hiera": lambda: (hf.HieraModel(hf.HieraConfig(embed_dim=12, depths=[1, 1, 1, 1])), square(224)),
    "efficientnet": lambda: (
        hf.EfficientNetModel(
            hf.EfficientNetConfig(width_coefficient=0.2, depth_coefficient=0.1, hidden_dim=256, image_size=64)
        ),
        square(SIDE),
    ),
    "mobilevit": lambda: (hf.MobileViTModel(hf.MobileViTConfig(image_size=64)), square(64)),
    "levit": lambda: (hf.LevitModel(hf.LevitConfig(depths=[1, 1, 1])), hf.LevitImageProcessorPil()),
    "bert": lambda: (hf.BertModel(hf.BertConfig(**TEXT)), square(SIDE)),
    "llama": lambda: (hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)), square(SIDE)),
}


def llava(tower: str = "clip", **changes: Any) -> Any:
    """A tiny LLaVA 1.5."""
    vision = {"clip": hf.CLIPVisionConfig, "siglip": hf.SiglipVisionConfig}[tower](**VIT)
    cfg = hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(**TEXT), image_token_index=5, **changes)
    return hf.LlavaForConditionalGeneration(cfg)


LLAVAS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava, clip, default": lambda: (llava(), crop_of_shortest(SIDE)),
    "llava, clip, full": lambda: (llava(vision_feature_select_strategy="full"), crop_of_shortest(SIDE)),
    "llava, clip, layers": lambda: (llava(vision_feature_layer=[-2, -1]), crop_of_shortest(SIDE)),
    "llava, siglip, full": lambda: (llava("siglip", vision_feature_select_strategy="full"), square(SIDE)),
    "llava, siglip, default": lambda: (llava("siglip"), square(SIDE)),
}


def _pixtral() -> tuple[Any, Any]:
    vision = hf.PixtralVisionConfig(**VIT | {"head_dim": 12})
    cfg = hf.LlavaConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**TEXT),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    size = {"longest_edge": SIDE}
    return hf.LlavaForConditionalGeneration(cfg), hf.PixtralImageProcessorPil(size=size, patch_size=PATCH)


def _other_vlm(kind: Any, made: Any, processor: Any, **changes: Any) -> tuple[Any, Any]:
    vision = hf.CLIPVisionConfig(**VIT)
    return made(kind(vision_config=vision, text_config=hf.LlamaConfig(**TEXT), **changes)), processor


OTHER_VLMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava, pixtral": _pixtral,
    "llava_next": lambda: _other_vlm(
        hf.LlavaNextConfig, hf.LlavaNextForConditionalGeneration, hf.LlavaNextImageProcessorPil()
    ),
    "llava_onevision": lambda: _other_vlm(
        hf.LlavaOnevisionConfig, hf.LlavaOnevisionForConditionalGeneration, hf.LlavaOnevisionImageProcessorPil()
    ),
    "vipllava": lambda: _other_vlm(
        hf.VipLlavaConfig,
        hf.VipLlavaForConditionalGeneration,
        crop_of_shortest(SIDE),
        vision_feature_layers=[-2, -1],
    ),
}


@torch.no_grad()
def redraw(model: Any) -> None:
    """Weights under which every part matters: matrices that keep their input's scale, norms unlike one another."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim < 2:
            tensor += 0.2 * noise
        elif "position" in name or "token" in name:
            tensor.copy_(noise)
        else:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)


def save(made: tuple[Any, Any], folder: Path) -> str:
    model, processor = made
    redraw(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
