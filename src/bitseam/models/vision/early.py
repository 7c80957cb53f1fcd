"""A forward pass of another's model that ends as soon as what is wanted of it is there.

What comes after would be computed and thrown away: of a tower whose tenth layer of twelve is taken, a sixth. The
model itself stays whole, so that its weights are saved, loaded and merged as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):
    """Ends the forward pass. state: what the module was called with."""

    def __init__(self, state: Tensor) -> None:
        super().__init__()
        self.state = state


def input_of(name: str, model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """The first tensor that the module of that name is called with in `model(**given)`, which ends there.

    Gradients go on from it as ever. Raises RuntimeError where the module is not called.
    """

    def reach(_: nn.Module, args: Any, named: Mapping[str, Any]) -> None:
        raise _Reached(_first_tensor(args, named))

    hook = model.get_submodule(name).register_forward_pre_hook(reach, with_kwargs=True)
    try:
        model(**given)
    except _Reached as reached:
        return reached.state
    finally:
        hook.remove()
    raise RuntimeError(f"{name} is not called")


def inputs_like(state: Tensor, model: nn.Module, given: Mapping[str, Any]) -> list[str]:
    """Names of the modules that are called with a tensor equal to `state` in `model(**given)`, as they are called."""
    names: list[str] = []
    hooks = []
    for name, module in model.named_modules():

        def look(_: nn.Module, args: Any, named: Mapping[str, Any], name: str = name) -> None:
            found = _first_tensor(args, named)
            if found is not None and found.shape == state.shape and torch.equal(found, state):
                names.append(name)

        hooks.append(module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        model(**given)
    finally:
        for hook in hooks:
            hook.remove()
    return names


def _first_tensor(args: Any, named: Mapping[str, Any]) -> Any:
    return next((value for value in (*args, *named.values()) if isinstance(value, Tensor)), None)
