"""One optimiser step, the same on both halves: AdamW, warm-up and cosine, clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from bitseam import config
from bitseam.errors import NonFiniteError
from bitseam.parties import heap


class Stepper:
    """Holds a half's optimiser.

    Gradients arrive as sums over answer tokens and are divided by their number once, at the step; micro-batches of
    different lengths then weigh as one large batch would.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, train: config.Train) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self._clip_norm = train.clip_norm
        warmup = round(train.warmup * train.steps)
        # An empty half (everything frozen) still walks through the schedule.
        groups = self.parameters or [nn.Parameter(torch.zeros(0))]
        # Fused: one pass over the weights, which on a CPU is a third of the loop's time.
        self.optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=train.weight_decay, fused=True)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warmup, train.steps)

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
