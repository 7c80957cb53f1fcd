"""Two ends of one stream, of narrow features."""

from __future__ import annotations

from typing import Any

import torch

from bitseam import config
from bitseam.streams import Receiver, Sender
from bitseam.wire import messages_pb2 as pb

WIDTH = 6
ENTROPY = {"codec": {"id": "entropy-uniform", "groups": 2}}
RATED: dict[str, Any] = {"quantizer": "rate-fsq", "levels": 5, "clip": 3.0, "rates": [1.0, 2.0], **ENTROPY}
DELTA = {"id": "delta", "first": "fp32", "inner": {"id": "stochastic", "levels": 4}, "capacity": 10**6}
FLOATS: dict[str, Any] = {"quantizer": "none", "codec": "fp32", "gradient": "fp32"}
CHANGES: dict[str, Any] = FLOATS | {"codec": DELTA}


def ends(number: int = 3, **settings: Any) -> tuple[Sender, Receiver]:
    torch.manual_seed(0)
    stream = config.Stream(**settings)
    return Sender("image", number, stream, WIDTH), Receiver("image", number, stream, WIDTH)


def features(*leading: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*(leading or (2, 4)), WIDTH, generator=torch.Generator().manual_seed(seed))


def told(news: pb.Statistics | None) -> pb.Statistics:
    assert news is not None
    return news
