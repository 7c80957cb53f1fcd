"""Client halves averaged at the end of each round (FedAvg, arXiv 1602.05629, as SplitFed has it, arXiv 2004.12088).

Every client takes as many steps in a round, so all weigh the same.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from bitseam.errors import CodecError
from bitseam.sessions.seat import Seat

PATIENCE = 120.0  # seconds that a round waits for a client that is connected but does not come


class Averaging:
    """A round ends when every client that is there, and has not come to its last round, has brought its half."""

    def __init__(self, last: int, patience: float = PATIENCE) -> None:
        """last: the step of the last average."""
        self._last, self._patience = last, patience
        self._there: set[Seat] = set()
        self._brought: dict[str, tuple[Seat, int, Tensor]] = {}
        self._changed = threading.Condition()

    def enter(self, seat: Seat) -> None:
        """A client is there."""
        with self._changed:
            self._there.add(seat)

    def leave(self, seat: Seat) -> None:
        """It is not, for now or for good; others wait for it no longer. What it has brought counts."""
        with self._changed:
            self._there.discard(seat)
            self._changed.notify_all()

    def average(self, seat: Seat, step: int, weights: Tensor) -> tuple[Tensor, int]:
        """Bring weights (W,) and wait for the others'; returns the mean and of how many it is.

        The same step again, from a client whose link broke, gets the same again. Raises CodecError for another length
        than others have brought.
        """
        with self._changed:
            for other, _, brought in self._brought.values():
                if brought.shape != weights.shape:
                    sizes = f"{len(weights)} numbers where {other.name!r} brought {len(brought)}"
                    raise CodecError(f"weights: {sizes}; clients of one run have halves of one shape")
            if seat.averaged != step:
                self._brought[seat.name] = seat, step, weights
                self._changed.notify_all()
                self._changed.wait_for(lambda: seat.averaged == step or self._complete(), self._patience)
            if seat.averaged != step:
                self._close()
            assert seat.average is not None
            return seat.average

    def _complete(self) -> bool:
        return all(seat.name in self._brought for seat in self._there if seat.averaged < self._last)

    def _close(self) -> None:
        # In double, so that weights which one client brings do not make another's mean infinite.
        mean = torch.stack([weights for _, _, weights in self._brought.values()]).mean(0, dtype=torch.float64).float()
        for seat, step, _ in self._brought.values():
            seat.averaged, seat.average = step, (mean, len(self._brought))
        self._brought.clear()
        self._changed.notify_all()
