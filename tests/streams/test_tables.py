"""When tables are renewed, counted by hand: two levels, one group, of which a table takes four bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitseam.codecs import EntropyUniform
from bitseam.streams.tables import Fit

EVEN = EntropyUniform(2, 1.0, groups=1)
LIMIT = 8 * (4 + 8)  # bits of new tables in their message
SKEWED = np.array([[30, 10]])


def bits(codec: EntropyUniform, counts: np.ndarray) -> float:
    return float(-(counts * np.log2(np.array(codec.tables or [[32768, 32768]]) / 65536)).sum())


def test_before_calibration_nothing_is_due_until_as_much_is_lost_as_a_message_takes() -> None:
    fit = Fit()
    assert fit.renewed(EVEN, SKEWED) is None
    assert fit.lost == 0  # the candidate knew nothing of these counts
    assert fit.counts.tolist() == [[30, 10]]
    lost, counts, renewed = 0.0, SKEWED.astype(float), None
    for _ in range(13):  # micro-batches that lose some 7.5 bits each
        assert renewed is None
        assert fit.lost == pytest.approx(lost)
        assert lost < LIMIT
        lost += bits(EVEN, SKEWED) - bits(EVEN.learned(counts), SKEWED)
        counts = 0.98 * counts + SKEWED
        renewed = fit.renewed(EVEN, SKEWED)
        np.testing.assert_allclose(fit.counts, counts)
    assert lost >= LIMIT
    assert fit.lost == 0
    assert renewed == EVEN.learned(counts)


def test_after_calibration_any_tables_are_better() -> None:
    fit = Fit(lost=math.inf)
    assert fit.renewed(EVEN, SKEWED) == EVEN.learned(SKEWED)
    assert fit.lost == 0
    assert fit.renewed(EVEN.learned(SKEWED), SKEWED) is None


def test_exactly_as_many_lost_bits_are_enough() -> None:
    counts = np.array([[8, 8]])
    for lost, due in ((LIMIT, True), (np.nextafter(LIMIT, 0), False)):
        fit = Fit(np.zeros((1, 2)), lost)
        assert (fit.renewed(EVEN, counts) is not None) == due


def test_what_fits_better_than_the_candidate_loses_nothing_and_saves_nothing_up() -> None:
    fit = Fit(np.array([[1000.0, 10.0]]), lost=5.0)
    other = np.array([[2, 20]])
    assert fit.renewed(EVEN, other) is None
    assert fit.lost == 0.0
    np.testing.assert_allclose(fit.counts, [[982, 29.8]])
