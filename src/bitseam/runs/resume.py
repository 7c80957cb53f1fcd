"""What a half needs beside its weights to go on as if it had never stopped: optimiser, random state, and some more.

The place in the data needs no state: batches are looked up by number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitseam.errors import ModelError
from bitseam.runs.optimise import Stepper


def training_state(stepper: Stepper, more: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Of this process now, as tensors by name. more: what the half has of its own."""
    state = {f"optimizer.{name}": value for name, value in stepper.state().items()}
    state |= {"random.cpu": torch.get_rng_state()}
    state |= {f"random.cuda.{i}": value for i, value in enumerate(_cuda_random_states())}
    return state | {f"own.{name}": value for name, value in (more or {}).items()}


def resume_training(state: Mapping[str, Tensor], stepper: Stepper) -> dict[str, Tensor]:
    """Set this process and its optimiser back to `state`; returns `more`. Raises ModelError where it does not fit."""
    try:
        stepper.restore(below("optimizer.", state))
        torch.set_rng_state(state["random.cpu"])
        for i in range(len(_cuda_random_states())):
            if (cuda := state.get(f"random.cuda.{i}")) is not None:  # none, where the run was on a CPU till now
                torch.cuda.set_rng_state(cuda, i)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"training.safetensors does not fit this machine or half: {error}") from error
    return own_part(state)


def own_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a half has of its own in `state`: `more` of `training_state`."""
    return below("own.", state)


def below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What stands under names that begin so, by the rest of them."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _cuda_random_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
