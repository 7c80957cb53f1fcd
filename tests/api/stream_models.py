"""A person's own model with a stream in it, and every quantizer and codec to put there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitseam import Stream

WIDTH = 12
IDENTITY: dict[str, Any] = {"quantizer": "none", "codec": "fp32", "gradient": "fp32"}
STEPS = [1.0, 0.5, 0.0, 1.0, 2.0, 1.0]
QUANTIZED: dict[str, dict[str, Any]] = {
    "rd-fsq": {},
    "rd-fsq-tensor": {"levels": 3},
    "tanh-fsq": {"projection": "fixed"},
    "learned-clip-fsq": {"codec": {"id": "entropy-uniform", "groups": 2}},
    "step-fsq": {"steps": STEPS, "codec": {"id": "entropy-uniform", "contexts": 3}},
    "rate-fsq": {"levels": 5, "codec": "entropy-uniform", "rates": [1.0, 2.0], "distortion_weight": 0.01},
}
FLOATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {},
    "bf16": {},
    "fp8": {"format": "e4m3"},
    "blockwise-int": {"bits": 4, "block": 4},
    "nf": {"bits": 4},
    "stochastic": {},
    "entropy-stochastic": {"step": 1.0},
    "one-bit": {},
    "top-k": {"share": 0.25},
    "randomized-top-k": {"share": 0.25},
    "splitfc": {"bits": 4},
}
DELTA = {"id": "delta", "first": "fp16", "inner": {"id": "nf", "bits": 4}, "capacity": 10**6}
FAMILY: dict[str, dict[str, Any]] = {
    name: {"quantizer": name, "channels": 6, "gradient": "entropy-stochastic", **own} for name, own in QUANTIZED.items()
}
FAMILY |= {
    name: {"quantizer": "none", "channels": 6, "codec": {"id": name, **own}, "gradient": {"id": name, **own}}
    for name, own in FLOATS.items()
}
FAMILY |= {"delta": {"quantizer": "none", "codec": DELTA}}
family = pytest.mark.parametrize("keys", list(FAMILY.values()), ids=list(FAMILY))


class Model(nn.Module):
    """A person's own: two ends with a stream between them."""

    def __init__(self, keys: Mapping[str, Any], width: int = WIDTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(5, width), nn.GELU())
        self.stream = Stream(width, **keys)
        self.last = nn.Linear(width, 1)


def batch(step: int) -> Tensor:
    """(4, 3, 5), of another scale in each step, so that statistics have to be told again."""
    return torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(step)) * (1 + step)


def numbers(model: Model, step: int) -> list[int]:
    return [0, 1, 2, 3] if model.stream.sender.remembers else []


def in_one(model: Model, steps: int = 3) -> list[Tensor]:
    optimizer, outputs = torch.optim.AdamW(model.parameters(), lr=0.01), []
    for step in range(steps):
        y = model.stream(model.first(batch(step)), samples=numbers(model, step))
        outputs.append(y.detach())
        loss = model.last(y).square().mean() + model.stream.distortion
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return outputs


def in_two(here: Model, there: Model, steps: int = 3) -> tuple[list[Tensor], list[bytes], list[bytes]]:
    """The same through bytes; each side has an optimizer over all that it has."""
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (here, there)]
    outputs, ups, downs = [], [], []
    for step in range(steps):
        ups.append(here.stream.encode(here.first(batch(step)), samples=numbers(here, step)))
        features = there.stream.decode(ups[-1])
        outputs.append(features.detach())
        for optimizer in optimizers:
            optimizer.zero_grad()
        there.last(features).square().mean().backward()
        downs.append(there.stream.encode_gradient(features))
        here.stream.backward(downs[-1], here.stream.distortion)
        for optimizer in optimizers:
            optimizer.step()
    return outputs, ups, downs


def x(seed: int = 0, scale: float = 1.0) -> Tensor:
    """Features (2, 3, D)."""
    return scale * torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(seed))


def pair(**keys: Any) -> tuple[Stream, Stream]:
    """The sending side, calibrated, and the other, which knows nothing."""
    here = Stream(WIDTH, channels=6, **keys)
    here.calibrate(x())
    return here, Stream(WIDTH, channels=6, **keys)
