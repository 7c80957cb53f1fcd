"""How long a row a language model takes: as long as the table of positions that it learned, if it has one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitseam.models.language.half import LanguageHalf

_SHORT = 7  # tokens; no size of a model that might be taken for it
_aten = torch.ops.aten


def most_positions(half: LanguageHalf, wanted: int) -> int | None:
    """The longest row that the model takes, in tokens, where that is less than `wanted`; else None.

    Found by what it does: a table of positions is read at consecutive places, one a token.
    """
    token = half.embed(torch.zeros(1, dtype=torch.int64, device=next(half.parameters()).device))
    place = torch.zeros(2, 1, dtype=torch.int64, device=token.device)

    def run(length: int) -> None:
        half.logits(token.expand(1, length, -1).clone(), place)

    with torch.no_grad(), _Reads() as reads:
        run(_SHORT)
    for most in sorted(most for most in reads.most if most < wanted):
        if token.device.type != "cpu":  # where a read beyond the table would end the process
            return most
        try:
            with torch.no_grad():
                run(most + 1)
        except (IndexError, RuntimeError, ValueError):
            return most
    return None


class _Reads(TorchDispatchMode):
    """most: how many tokens find their place in each table that is read at one place a token, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.most: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.embedding.default:
            self._note(args[0].shape[0], args[1])
        elif func is _aten.index.Tensor:
            for dimension, places in enumerate(args[1]):
                self._note(args[0].shape[dimension], places)
        elif func in (_aten.gather.default, _aten.index_select.default):
            self._note(args[0].shape[args[1]], args[2])
        return func(*args, **(kwargs or {}))

    def _note(self, size: int, places: Tensor | None) -> None:
        if places is None or places.dtype == torch.bool or size <= _SHORT or _SHORT not in places.shape:
            return
        line = places.movedim(places.shape.index(_SHORT), 0).flatten(1)[:, 0] if places.dim() > 1 else places
        if bool((line.diff() == 1).all()):
            self.most.add(size - int(line[0]))
