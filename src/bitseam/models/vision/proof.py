"""A vision tower proves itself at load: where its patch tokens are, its final norm, and that images stay apart.

Names and configurations of towers differ and lie; what noise does to them does not. Three pictures go through, without
gradient: two of noise, and a third that is the first with the second's patches at random places. What is not as it must
be is a ModelError of one line, before the first image.

Shapes: T tokens of a hidden state, N patches, Dv width, S the side of a picture in pixels.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bitseam.errors import ModelError, first_sentence
from bitseam.models.vision.early import input_of, inputs_like
from bitseam.models.vision.llava import LlavaTower, LlavaVision
from bitseam.models.vision.tower import Cut, PatchTower, as_tokens, extras, set_training
from bitseam.models.weights import Loaded, some

log = logging.getLogger(__name__)

_CHANGED = 1e-3  # of a state's deviation: far above rounding, far below what another picture does
_ALIKE = 1e-3  # of the features' deviation, between a picture alone and beside another


def prove_tower(loaded: Loaded, hidden_layer: int, side: int, merge: int) -> PatchTower:
    """A tower for pictures of S = `side` pixels. Raises ModelError where it cannot be cut as `PatchTower` says."""
    model = loaded.model.eval()
    cut = _arguments(model, side)
    noise = _noise(side)
    trace = _traced(model, noise, cut, side)
    _check_depth(hidden_layer, len(trace.states))
    cut = _place(model, noise, cut, trace, hidden_layer, merge)
    cut = _normed(model, cut, trace, hidden_layer)
    cut = replace(cut, end=_end(model, noise, cut, trace.states[hidden_layer], hidden_layer))
    tower = PatchTower(model, hidden_layer, merge, cut)
    _check_apart(tower, noise)
    _check_whole(tower, loaded.missing, noise)
    return tower


def prove_llava(loaded: Loaded, side: int) -> LlavaTower:
    """The tower of a LLaVA, its connector taken out before, for pictures of S = `side` pixels. Raises ModelError."""
    llava: LlavaVision = loaded.model.eval()
    if loaded.missing:
        raise ModelError(f"tensors are missing in its files: {some(loaded.missing)}")
    noise = _noise(side)
    try:
        with torch.no_grad():
            features = LlavaTower(llava, 0, 0)(noise)
    except Exception as error:  # whatever another's code raises
        raise uncut(f"a picture of {side} x {side} pixels cannot go through: {first_sentence(error)}") from error
    if features.ndim != 3 or len(features) != len(noise):
        raise uncut(
            f"{len(noise)} pictures become features of shape {list(features.shape)}; Bitseam cuts LLaVA checkpoints "
            "whose tower gives every picture the same number of tokens (CLIP, SigLIP)"
        )
    tower = LlavaTower(llava, *features.shape[1:])
    _check_apart(tower, noise)
    return tower


@dataclass(frozen=True)
class _Trace:
    """One forward pass of two pictures of noise.

    states: hidden states. final: `last_hidden_state`. norms: what went into and came out of modules whose parameters
    are vectors. maps: the states as maps, where the model tells.
    """

    states: tuple[Tensor, ...]
    final: Tensor
    norms: list[tuple[str, Tensor, Tensor]]
    maps: tuple[Tensor, ...] | None


def check_takes_images(model: Any) -> None:
    """Raises ModelError where `forward` wants text, or more than pixels."""
    named = inspect.signature(model.forward).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    wanted = [name for name, p in named.items() if p.default is p.empty and p.kind not in kinds]
    more = [name for name in wanted if name != "pixel_values"]
    if "pixel_values" not in named or "input_ids" in named:
        raise uncut(
            "it does not take images alone; give a tower such as DINOv2 or SigLIP, or a LLaVA 1.5 (model type llava)"
        )
    if more:
        raise uncut(f"it wants {', '.join(more)} besides pixels")


def _arguments(model: Any, side: int) -> Cut:
    """What the forward pass takes; the rest is to be found."""
    check_takes_images(model)
    named = inspect.signature(model.forward).parameters
    resized = any(edge != side for edge in _edges(model.config, "image_size"))
    interpolated = ("interpolate_pos_encoding",) if resized and "interpolate_pos_encoding" in named else ()
    if "noise" not in named:
        return Cut(0, 0, 0, "", interpolated)
    model.config.mask_ratio = 0.0  # masked autoencoders drop patches at random
    return Cut(side // max([1, *_edges(model.config, "patch_size")]), 0, 0, "", interpolated, ordered=True)


def _edges(cfg: Any, name: str) -> list[int]:
    """Pixels along the edges, where the configuration tells: image_size, patch_size."""
    size = getattr(cfg, name, None)
    return list(size) if isinstance(size, list | tuple) else [size] if size else []


def _noise(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def uncut(reason: str) -> ModelError:
    """The error of a model that is of another kind, or not proved to be of this one."""
    return ModelError(f"no vision tower that Bitseam can cut: {reason}")


@torch.no_grad()
def _traced(model: Any, pixels: Tensor, cut: Cut, side: int) -> _Trace:
    norms: list[tuple[str, Tensor, Tensor]] = []
    hooks = []
    for name, module in model.named_modules():
        own = list(module.parameters())
        if own and all(p.ndim == 1 for p in own):

            def keep(_: nn.Module, given: Any, out: Any, name: str = name) -> None:
                if given and isinstance(given[0], Tensor) and isinstance(out, Tensor):
                    norms.append((name, given[0], out))

            hooks.append(module.register_forward_hook(keep))
    try:
        out = model(pixel_values=pixels, output_hidden_states=True, **extras(cut, len(pixels), pixels.device))
        return _Trace(tuple(out.hidden_states), out.last_hidden_state, norms, out.get("reshaped_hidden_states"))
    except Exception as error:  # whatever another's code raises
        made = _edges(model.config, "image_size")
        if any(edge != side for edge in made):
            sizes = f"client.image_size is {side}, and this tower is made for {made[0]} and cannot take another"
            raise ModelError(f"{sizes}: {first_sentence(error)}") from error
        raise uncut(f"a picture of {side} x {side} pixels cannot go through: {first_sentence(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _check_depth(hidden_layer: int, count: int) -> None:
    if not -count <= hidden_layer < count:
        raise ModelError(f"client.hidden_layer {hidden_layer}: this tower has {count - 1} layers")


def _place(model: Any, noise: Tensor, cut: Cut, trace: _Trace, hidden_layer: int, merge: int) -> Cut:
    """Where patch tokens are in the layer's state: a square in rows from above, each of its own patch of pixels."""
    first, side = _square(trace.states[0])
    pixels = noise.shape[-1]
    state = trace.states[hidden_layer]
    # Fewer tokens from stage to stage, or tokens that were a map before.
    staged = as_tokens(state).shape[1] != as_tokens(trace.states[0]).shape[1] or state.ndim != trace.states[0].ndim
    patch = max(_edges(model.config, "patch_size"), default=pixels // side)
    if not staged and pixels % (patch * merge):
        raise ModelError(f"client.image_size {pixels} must be a multiple of patch size x merge = {patch * merge}")
    if trace.states[0].ndim == 3:  # of a map, the order is plain
        _check_order(model, noise, cut, trace.states[0], first, side)
    if state.ndim not in (3, 4) or (
        state.ndim == 4 and (state.shape[2] != state.shape[3] or len({*state.shape[1:]}) < 2)
    ):
        raise uncut(f"its hidden state {hidden_layer} is of shape {list(state.shape[1:])}: no square of tokens")
    if staged:
        first, side = 0, math.isqrt(as_tokens(state).shape[1])
        told = state if state.ndim == 4 else trace.maps[hidden_layer] if trace.maps else None
        if told is None or side**2 != as_tokens(state).shape[1] or not _same(as_tokens(told), as_tokens(state)):
            raise uncut(f"the tokens of its hidden state {hidden_layer} cannot be told to be a square in rows")
        if pixels % side or (pixels // side).bit_count() != 1 or side % merge:  # stages halve
            raise ModelError(
                f"client.image_size {pixels} does not divide into the {side} x {side} patches of hidden layer "
                f"{hidden_layer} (merge {merge}); take a multiple of {32 * merge}"
            )
    return replace(cut, side=side, first=first, width=as_tokens(state).shape[-1])


def _square(embedded: Tensor) -> tuple[int, int]:
    """Where in (2, T, Dv) the tokens are that change with the picture: the first, and the side of their square."""
    if embedded.ndim == 4 and embedded.shape[2] == embedded.shape[3]:  # a map
        return 0, embedded.shape[2]
    if embedded.ndim != 3 or len(embedded) != 2:
        raise uncut(f"two pictures become a hidden state of shape {list(embedded.shape)}: no tokens of each")
    moved = torch.nonzero(_changed(*embedded))[:, 0]
    count = len(moved)
    side = math.isqrt(count)
    if not count or side**2 != count or int(moved[-1] - moved[0]) + 1 != count:
        raise uncut(f"{count} of its {embedded.shape[1]} tokens tell of the picture: no square of patches in a row")
    return int(moved[0]), side


@torch.no_grad()
def _check_order(model: Any, noise: Tensor, cut: Cut, embedded: Tensor, first: int, side: int) -> None:
    """Patches of the second picture, put into the first at random places, change those tokens and no others."""
    pixels = noise.shape[-1]
    taken = torch.rand(side, side, generator=torch.Generator().manual_seed(1)) < 0.5
    cells = taken.repeat_interleave(-(-pixels // side), 0).repeat_interleave(-(-pixels // side), 1)[:pixels, :pixels]
    mixed = torch.where(cells, noise[1], noise[0])[None]
    out = model(pixel_values=mixed, output_hidden_states=True, **extras(cut, 1, noise.device))
    moved = _changed(embedded[0], out.hidden_states[0][0])[first : first + side**2]
    if not torch.equal(moved, taken.flatten()):
        raise uncut("its tokens are not its patches of pixels, row by row")


def _changed(one: Tensor, other: Tensor) -> Tensor:
    """(T, Dv) twice -> which of T tokens differ."""
    return (one - other).abs().amax(-1) > _CHANGED * one.std()


def _normed(model: Any, cut: Cut, trace: _Trace, hidden_layer: int) -> Cut:
    """With the final norm found, by what went in and came out of it."""
    last, final = as_tokens(trace.states[-1]), as_tokens(trace.final)
    is_last = hidden_layer in (-1, len(trace.states) - 1)
    found, done = "", False
    for name, given, made in trace.norms:
        if made.ndim == 3 and _same(made, final) and _same(given[:, -last.shape[1] :], last):
            found, done = name, False
        elif made.ndim == 3 and _same(made, final) and _same(final, last):
            found, done = name, True  # this hidden state is taken after the norm
        elif _same(given, last[:, 0]) and not found:
            found = name  # of the class token alone
    if not found and not _same(last, final):
        raise uncut("its last_hidden_state is no norm of its last hidden state: its final norm cannot be told")
    if (found and _own_width(model, found) != cut.width) or (done and is_last):
        found = ""
    if found and not _each_token(model.get_submodule(found), as_tokens(trace.states[hidden_layer])):
        raise uncut(f"its final norm, {found}, mixes tokens or pictures")
    return replace(cut, norm=found)


@torch.no_grad()
def _end(model: Any, noise: Tensor, cut: Cut, state: Tensor, hidden_layer: int) -> str:
    """The first module that is given the layer's state, so that a forward pass may end there; "" where none is sure.

    A module that only training lets change its input, such as dropout, looks like one that is given the state. So a
    pass that ends there must have the same numbers in training mode too, drawn by the same random ones.
    """
    given = {"pixel_values": noise, **extras(cut, len(noise), noise.device)}

    def in_training(run: Callable[[], Tensor]) -> Tensor:
        set_training(model, True)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return run()
        finally:
            set_training(model, False)

    try:
        trained = in_training(lambda: model(**given, output_hidden_states=True).hidden_states[hidden_layer])
        for end in inputs_like(state, model, given):
            reach = partial(input_of, end, model, given)
            if _same(reach(), state) and _same(in_training(reach), trained):
                return end
    except Exception:  # whatever another's code raises; the whole forward pass is still there
        log.debug("the tower runs whole", exc_info=True)
    return ""


def _own_width(model: Any, name: str) -> int:
    return len(next(model.get_submodule(name).parameters()))


@torch.no_grad()
def _each_token(norm: nn.Module, state: Tensor) -> bool:
    return torch.allclose(norm(state)[:1, -1:], norm(state[:1, -1:]), rtol=1e-4, atol=1e-5)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


@torch.no_grad()
def _check_apart(tower: PatchTower | LlavaTower, noise: Tensor) -> None:
    """A picture's features do not depend on its neighbours, nor on chance."""
    together, alone = tower(noise), tower(noise[:1])
    if together.shape != (2, tower.tokens, tower.width) or not together.isfinite().all():
        raise uncut(f"two pictures of noise become features of shape {list(together.shape)}, or not finite")
    off = float((together[:1] - alone).abs().max() / together.std())
    if not off < _ALIKE:
        raise uncut(f"a picture has other features alone than beside another, by {off:.2g} of their deviation")


def _check_whole(tower: PatchTower, missing: frozenset[str], noise: Tensor) -> None:
    """No tensor that features or the last hidden state hang on is missing in the checkpoint; a pooler's may be."""
    named = dict(tower.model.named_parameters())
    absent = [name for name in sorted(missing) if name in named]
    due = missing & {name for name, _ in tower.model.named_buffers()}
    if absent:
        extra = extras(tower.cut, 1, noise.device)
        with torch.enable_grad():
            final = tower.model(pixel_values=noise[:1], **extra).last_hidden_state
            total = (final**2).sum() + (tower(noise[:1]) ** 2).sum()
        grads = torch.autograd.grad(total, [named[name].requires_grad_() for name in absent], allow_unused=True)
        due |= {name for name, grad in zip(absent, grads, strict=True) if grad is not None}
    if due:
        raise ModelError(f"tensors are missing in its files: {some(due)}")
