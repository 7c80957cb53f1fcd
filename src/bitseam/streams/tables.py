"""When an entropy codec's tables no longer fit what it codes.

The sending end alone makes tables: in calibration, and again when the codes have drifted from them. They travel beside
the statistics, and neither side adapts to what was coded: a Forward can then be replayed, and an Ask can come between
two steps, without leaving the two sides with different tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitseam.codecs import EntropyUniform

_MEMORY = 0.98  # of the counts, a micro-batch: new tables fit the last 50 or so
_MESSAGE = 8  # bytes around tables in a message


@dataclass
class Fit:
    """Whether a codec's tables still fit what it codes.

    Candidates learn from earlier micro-batches, and are compared with the tables in use on the present one. When those
    have lost as many bits as sending others takes, others are due: at the worst, twice the bits of knowing beforehand
    (the bound of ski rental). counts: (groups, L); lost: bits, infinite before calibration, when any tables are better.
    """

    counts: NDArray[Any] = field(default_factory=lambda: np.zeros(()))
    lost: float = 0.0

    def renewed(self, codec: EntropyUniform, counts: NDArray[np.int64]) -> EntropyUniform | None:
        """Count a micro-batch; the codec with new tables where they are due."""
        candidate = codec.learned(self.counts + np.zeros(counts.shape))
        self.lost = max(0.0, self.lost + codec.bits(counts) - candidate.bits(counts))
        self.counts = np.asarray(_MEMORY * self.counts + counts)
        if self.lost < 8 * (len(codec.table_bytes()) + _MESSAGE):
            return None
        self.lost = 0.0
        return codec.learned(self.counts)
