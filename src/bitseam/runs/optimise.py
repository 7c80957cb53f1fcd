"""One optimiser step, the same on both halves: AdamW, warm-up and cosine, clipping."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from bitseam import config
from bitseam.errors import ModelError, NonFiniteError
from bitseam.runs import heap


class Stepper:
    """Holds a half's optimiser.

    Gradients arrive as sums over answer tokens and are divided by their number once, at the step; micro-batches of
    different lengths then weigh as one large batch would. Weight decay acts on matrices alone, not on biases, norms,
    scales and other vectors (by the number of dimensions, as nanoGPT does).
    """

    def __init__(self, model: nn.Module, rate: float, train: config.Train) -> None:
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        self._clip_norm = train.clip_norm
        matrices = [name for name, p in named.items() if p.ndim >= 2]
        vectors = [name for name, p in named.items() if p.ndim < 2]
        self.names = matrices + vectors  # the optimiser's order
        # A half without vectors, or an empty one (everything frozen), still walks through the schedule.
        decayed = {"params": [named[name] for name in matrices], "weight_decay": train.weight_decay}
        rest = {"params": [named[name] for name in vectors] or [nn.Parameter(torch.zeros(0))], "weight_decay": 0.0}
        # Fused: one pass over the weights, which on a CPU is a third of the loop's time.
        self.optimizer = torch.optim.AdamW([decayed, rest], lr=rate, fused=True)
        self._lengths = round(train.warmup * train.steps), train.steps
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, *self._lengths)

    @property
    def rate(self) -> float:
        return self.schedule.get_last_lr()[0]

    def step(self, answer_tokens: int) -> float:
        """Divide by `answer_tokens`, clip, step, and clear; returns the gradient's norm before clipping.

        Raises NonFiniteError, the weights untouched, where a gradient is not finite.
        """
        grads = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_div_(grads, max(answer_tokens, 1)) if grads else None
        norm = float(nn.utils.get_total_norm(grads)) if grads else 0.0
        if not norm < float("inf"):
            self.clear()
            raise NonFiniteError(f"the gradient's norm is {norm}: the step was not taken; try a lower rate")
        if self._clip_norm and grads:
            nn.utils.clip_grads_with_norm_(self.parameters, self._clip_norm, torch.tensor(norm))
        self.optimizer.step()
        self.schedule.step()
        self.clear()
        if self.schedule.last_epoch % heap.TRIM_EVERY == 0:
            heap.trim_heap()
        return norm

    def clear(self) -> None:
        """Forget gathered gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments by parameter name, and steps taken; what `restore` wants."""
        moments = self.optimizer.state_dict()["state"]
        named = {f"{self.names[i]}/{key}": value for i, state in moments.items() for key, value in state.items()}
        return named | {"steps": torch.tensor(self.schedule.last_epoch)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on as the half that `state` was taken of, with gathered gradients forgotten. Raises ModelError."""
        places = {name: i for i, name in enumerate(self.names)}
        moments: dict[int, dict[str, Tensor]] = {}
        for place, value in state.items():
            name, slash, key = place.rpartition("/")
            if slash:
                if name not in places:
                    raise ModelError(f"the optimiser's state is of a parameter {name} that is not trained here")
                moments.setdefault(places[name], {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        steps = int(state["steps"])
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, *self._lengths, last_epoch=steps - 1)
        self.clear()
