"""Vision towers and LLaVA checkpoints against transformers' own forward pass: features, gradient by pixels, pixels.

Every model is made tiny by transformers' own classes, its weights redrawn so that norms and positions matter, saved,
and loaded as `client.checkpoint`. What is expected is written down here model by model (its final norm, the tokens
before its patches), not found out as `bitseam.models.vision.proof` does.

loss_diff    largest difference of features, hidden layers -1 and -2, over the largest feature
grad_diff    the same of the gradient of their squares' sum by pixels
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tiny_towers import LLAVAS, OTHER_VLMS, OTHERS, SIDE, TOWERS, WIDTH, save
from torch import Tensor

from bitseam import config
from bitseam.errors import ModelError
from bitseam.models.vision.half import VisionHalf, load_vision_half


def load(checkpoint: str, **changes: Any) -> VisionHalf:
    """As the client loads it, ready to be compared."""
    return load_vision_half(config.Client(checkpoint=checkpoint, **{"image_size": SIDE} | changes), WIDTH).eval()


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
