"""Tensors to and from coded messages."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitseam.codecs import Codec
from bitseam.errors import CodecError
from bitseam.wire import messages_pb2 as pb


def encode(codec: Codec, tensor: Tensor, generator: torch.Generator | None = None) -> pb.Coded:
    """A tensor as a message."""
    return pb.Coded(shape=list(tensor.shape), payload=codec.encode(tensor.detach(), generator))


def as_told(statistics: tuple[Tensor, Tensor] | None, rotation: Tensor | None) -> list[dict[str, bytes]]:
    """Mean (C,) and deviation (C,), and directions (C, C), as they travel: fields of `Statistics`, those that belong
    together in one dictionary."""
    parts = []
    if statistics is not None:
        mean, std = (np.ascontiguousarray(t.cpu().numpy(), "<f4").tobytes() for t in statistics)
        parts.append({"mean": mean, "std": std})
    if rotation is not None:
        parts.append({"rotation": rotation.cpu().numpy().tobytes()})
    return parts


def decode(codec: Codec, coded: pb.Coded, shape: tuple[int, ...], what: str, device: torch.device | str) -> Tensor:
    """A message as a float32 tensor of exactly `shape`. Raises CodecError that names `what`."""
    if tuple(coded.shape) != shape:
        raise CodecError(f"{what}: shape {tuple(coded.shape)} where {shape} is due")
    try:
        return codec.decode(coded.payload, shape, device)
    except CodecError as error:
        raise type(error)(f"{what}: {error}") from error
