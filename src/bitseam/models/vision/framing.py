"""What of a picture the tower sees: the framing of the checkpoint's own processor, scaled to another number of pixels.

A processor that resizes the shorter edge to 256 and crops the middle 224 (DINOv2, ConvNeXt) sees 7/8 of that edge; at
112 pixels it resizes to 128 and crops 112, and sees the same. One that resizes to a square (SigLIP) or crops all of the
shorter edge (CLIP) goes on doing that. Where the processor leaves oblong pictures, their middle square is taken.

Nothing of this is believed: pictures upright, lying and wide go through at load, and the outcome is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from bitseam.errors import ModelError, first_sentence

_SIZES = ("size", "crop_size", "pad_size")
_OFF = 1.5  # pixels that rounded sizes may move an edge by
_STEPS = 1 / 64  # of a slope: its pixels and its 8 bits

Framing = dict[str, Any]  # named arguments of a call to the processor


def framing(processor: Any, side: int) -> Framing:
    """Arguments for pictures of side x side pixels, framed as the processor's own. Raises ModelError."""
    own, arguments = _own(processor)
    if own.shape[-1] == side:
        return arguments
    ratio = side / own.shape[-1]
    scaled = arguments | {name: _scaled(_sizes(processor, arguments, name), ratio) for name in _SIZES}
    scaled = {name: value for name, value in scaled.items() if value}
    advice = f"its processor makes {own.shape[-1]} x {own.shape[-1]} pixels and cannot be set to {side}"
    try:
        ours = _run(processor, scaled)
    except Exception as error:
        raise ModelError(f"client.image_size {side}: {advice}: {first_sentence(error)}") from error
    if ours.shape[-2:] != (side, side) or not _same_view(own, ours):
        raise ModelError(f"client.image_size {side}: {advice} with the same framing")
    return scaled


def own_framing(processor: Any) -> tuple[int, Framing]:
    """Side of the pictures that the processor makes, and the arguments for it. Raises ModelError."""
    own, arguments = _own(processor)
    return own.shape[-1], arguments


def _own(processor: Any) -> tuple[torch.Tensor, Framing]:
    """The pictures as the processor makes them, and the arguments for it."""
    tries: list[Framing] = [{}]
    size = _sizes(processor, {}, "size")
    if getattr(processor, "do_resize", False) and (edge := size.get("shortest_edge")):
        tries.append({"do_center_crop": True, "crop_size": {"height": edge, "width": edge}})
    reason = "its pictures are not all of one square size"
    for arguments in tries:
        try:
            pixels = _run(processor, arguments)
        except Exception as error:
            reason = first_sentence(error)
            continue
        if pixels.shape[-1] == pixels.shape[-2]:
            return pixels, arguments
    raise ModelError(f"its image processor, a {type(processor).__name__}, does not fit: {reason}")


def _run(processor: Any, arguments: Framing) -> torch.Tensor:
    """The pictures' pixels (3, 3, H, W). Raises ModelError where they depend on each other."""
    with torch.device("cpu"):  # merged models are built on the meta device
        together, *alone = (
            torch.as_tensor(processor(images=images, return_tensors="pt", **arguments)["pixel_values"])
            for images in (_PICTURES, *([picture] for picture in _PICTURES))
        )
    if together.ndim != 4 or together.shape[:2] != (len(_PICTURES), 3):
        raise ModelError(f"{len(_PICTURES)} pictures become an array of shape {list(together.shape)}")
    if not all(torch.equal(one, by_itself[0]) for one, by_itself in zip(together, alone, strict=True)):
        raise ModelError("a picture's pixels depend on the pictures beside it")
    return together.float()


def _sizes(processor: Any, arguments: Framing, name: str) -> dict[str, int]:
    given = arguments.get(name) or getattr(processor, name, None)
    return dict(given) if isinstance(given, Iterable) else {}


def _scaled(size: Mapping[str, int], ratio: float) -> dict[str, int]:
    return {key: max(1, round(value * ratio)) for key, value in size.items()}


def _same_view(own: torch.Tensor, ours: torch.Tensor) -> bool:
    """Whether pictures of slopes come out alike but for their number of pixels; at the edges, resampling differs."""
    side, edge = ours.shape[-1], ours.shape[-1] // 8
    inner = slice(edge, side - edge)
    off = (interpolate(own, size=(side, side), mode="bilinear", antialias=True) - ours)[..., inner, inner]
    span = own.amax((0, 2, 3)) - own.amin((0, 2, 3))
    return bool((off.abs().amax((0, 2, 3)) <= (_OFF / min(side, own.shape[-1]) + _STEPS) * span + 1e-6).all())


def _slopes(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, blue both ways."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, (across + down) / 2], -1).astype(np.uint8))


_PICTURES = [_slopes(384, 256), _slopes(256, 384), _slopes(1280, 320)]
