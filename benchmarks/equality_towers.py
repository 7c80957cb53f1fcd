"""Vision towers and LLaVA checkpoints against transformers' own forward pass: features, gradient by pixels, pixels.

Every model is made tiny by transformers' own classes, its weights redrawn so that norms and positions matter, saved,
and loaded as `client.checkpoint`. What is expected is written down here model by model (its final norm, the tokens
before its patches), not found out as `bitseam.halves.proof` does.

loss_diff    largest difference of features, hidden layers -1 and -2, over the largest feature
grad_diff    the same of the gradient of their squares' sum by pixels
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import Tensor

from bitseam import config
from bitseam.errors import ModelError
from bitseam.halves.client import ClientHalf, load_client_half

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


def load(checkpoint: str, **changes: Any) -> ClientHalf:
    """As the client loads it, ready to be compared."""
    return load_client_half(config.Client(checkpoint=checkpoint, **{"image_size": SIDE} | changes), WIDTH).eval()


def pictures(count: int = 3) -> list[Image.Image]:
    """Of noise, upright and lying."""
    generator = np.random.default_rng(0)
    shapes = [(90, 70), (64, 100), (SIDE, SIDE)] * count
    return [Image.fromarray(generator.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes[:count]]


def tower_rows(name: str, folder: Path) -> list[dict[str, Any]]:
    """One tower against transformers."""
    tower = TOWERS[name]
    processor = tower.processor(tower.side)
    checkpoint = save((tower.make(), processor), folder)
    halves = [load(checkpoint, image_size=tower.side, hidden_layer=layer, tune_vision=True) for layer in tower.layers]
    model = hf.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model = getattr(model, "vision_model", model)
    if hasattr(model.config, "mask_ratio"):
        model.config.mask_ratio = 0.0

    def expected(pixels: Tensor, layer: int) -> Tensor:
        """The documented definition, one picture."""
        out = model(pixel_values=pixels, output_hidden_states=True, **tower.forward)
        state = out.hidden_states[layer]
        state = state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
        norm = model.get_submodule(tower.norm) if tower.norm else None
        if norm is not None and len(norm.weight) == state.shape[-1]:
            state = norm(state)
        return state[:, tower.before :]

    pixels = processor(images=pictures(), return_tensors="pt")["pixel_values"]
    same = all(torch.equal(half.pixels(pictures()), pixels) for half in halves)
    pairs = [
        (half.tower, lambda x, layer=layer: expected(x, layer))
        for half, layer in zip(halves, tower.layers, strict=True)
    ]
    return _rows("tower", name, pairs, pixels, same)


def llava_rows(name: str, folder: Path) -> list[dict[str, Any]]:
    """One LLaVA's tower and connector against transformers' image features."""
    made = LLAVAS[name]()
    checkpoint = save(made, folder)
    half = load(checkpoint, tune_vision=True)
    whole = hf.LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    pixels = made[1](images=pictures(), return_tensors="pt")["pixel_values"]
    same = torch.equal(half.pixels(pictures()), pixels)
    pair = (
        lambda x: half(half.features(x)),
        lambda x: torch.stack(list(whole.get_image_features(pixel_values=x).pooler_output)),
    )
    return _rows("vlm", name, [pair], pixels, same)


def _rows(kind: str, name: str, pairs: list[Any], pixels: Tensor, same: bool) -> list[dict[str, Any]]:
    rows = []
    for mode, batch in (("alone", pixels[:1]), ("packed", pixels)):
        loss, grad = zip(*(_differences(ours, theirs, batch) for ours, theirs in pairs), strict=True)
        equal = same and max(*loss, *grad) < 1e-5
        rows.append(
            row(kind, name, mode, max(loss), max(grad), "equal" if equal else "differs", "" if same else "pixels")
        )
    return rows


def _differences(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], pixels: Tensor) -> Any:
    """Of a batch against each picture alone: features and gradient by pixels."""
    pixels = pixels.clone().requires_grad_()
    found = ours(pixels)
    due = torch.cat([theirs(pixels[i : i + 1]) for i in range(len(pixels))])
    if found.shape != due.shape:
        return float("inf"), float("inf")
    one, other = (torch.autograd.grad((out**2).sum(), pixels)[0] for out in (found, due))
    return _relative(found.detach(), due.detach()), _relative(one, other)


def _relative(found: Tensor, due: Tensor) -> float:
    return float((found - due).abs().max() / due.abs().max())


def refused_rows(kind: str, name: str, made: tuple[Any, Any], folder: Path) -> list[dict[str, Any]]:
    """A model that is no tower of the kind that Bitseam cuts."""
    checkpoint = save(made, folder)
    side = getattr(made[0].config, "image_size", SIDE)
    try:
        load(checkpoint, image_size=side if isinstance(side, int) else side[0])
    except ModelError as error:
        reason = str(error).replace(checkpoint, "DIR")
        return [row(kind, name, mode, None, None, "refused", reason) for mode in ("alone", "packed")]
    return [row(kind, name, mode, None, None, "differs", "taken") for mode in ("alone", "packed")]


def row(kind: str, name: str, mode: str, loss: Any, grad: Any, verdict: str, reason: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": name,
        "mode": mode,
        "loss_diff": loss,
        "grad_diff": grad,
        "tokens_equal": None,
        "verdict": verdict,
        "reason": reason,
    }


def rows() -> list[dict[str, Any]]:
    """Every tower and LLaVA, alone and in a batch of three."""
    return list(_all_rows())


def _all_rows() -> Iterator[dict[str, Any]]:
    for names, make in (
        (TOWERS, tower_rows),
        (LLAVAS, llava_rows),
        (OTHERS, lambda name, folder: refused_rows("tower", name, OTHERS[name](), folder)),
        (OTHER_VLMS, lambda name, folder: refused_rows("vlm", name, OTHER_VLMS[name](), folder)),
    ):
        for name in names:
            torch.manual_seed(0)
            with tempfile.TemporaryDirectory() as folder:
                yield from make(name, Path(folder))


if __name__ == "__main__":
    for each in rows():
        print(*each.values(), sep="\t")
