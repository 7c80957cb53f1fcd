"""Numbers as `vectors/*.json` has them, so that any language reads the same float32."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

SAMPLE = {"multiply": 7919, "add": 0, "modulo": 1009, "less": 504, "over": 128}  # spread over [-3.94, 3.94]
LONG = 1000  # values; more of them are told by their formula and their digest


def sample(*shape: int, **formula: int) -> Tensor:
    """What SAMPLE, or a formula that departs from it, gives for a shape."""
    return read({**SAMPLE, **formula}, shape)


def read(numbers: Any, shape: Any) -> Tensor:
    """A list of numbers, {"float32": hexadecimal} or a formula -> float32 of the shape."""
    if isinstance(numbers, list):
        flat = torch.tensor(numbers, dtype=torch.float32)
    elif "float32" in numbers:
        flat = torch.from_numpy(np.frombuffer(bytes.fromhex(numbers["float32"]), "<f4").astype(np.float32))
    else:
        place = torch.arange(math.prod(shape), dtype=torch.int64)
        whole = (place * numbers["multiply"] + numbers["add"]) % numbers["modulo"] - numbers["less"]
        flat = (whole.double() / numbers["over"]).float()
    return flat.reshape(tuple(shape))


def told(x: Tensor) -> Any:
    """Decoded values: as numbers, or where they are many as the SHA-256 of their bytes."""
    return x.flatten().tolist() if x.numel() <= LONG else {"sha256": digest(x)}


def digest(x: Tensor) -> str:
    """SHA-256 of float32, little-endian, in C order."""
    return hashlib.sha256(x.numpy().astype("<f4").tobytes()).hexdigest()
