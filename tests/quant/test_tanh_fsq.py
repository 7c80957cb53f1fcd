import math

import pytest
import torch

from bitseam.quant import TanhFSQ
from bitseam.quant.uniform import level_values

QUANTILES = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()[:, None]


def quantizer(levels: int, clip: float) -> TanhFSQ:
    fsq = TanhFSQ(1, 1, levels, clip)
    fsq.calibrate(QUANTILES)
    return fsq.eval()


def test_levels_are_those_nearest_to_the_bounded_features() -> None:
    bounded = 1.7 * torch.tanh(QUANTILES / QUANTILES.std(correction=0) / 1.7)
    levels = quantizer(5, 1.7)(QUANTILES).levels
    assert torch.isin(levels, level_values(5, 1.7)).all()
    assert (levels - bounded).abs().max() <= 1.0001 * 1.7 / 4


def test_the_gradient_is_that_of_tanh() -> None:
    x = QUANTILES.clone().requires_grad_()
    quantizer(4, 1.5)(x).levels.sum().backward()
    std = QUANTILES.std(correction=0)
    torch.testing.assert_close(x.grad, (1 - torch.tanh(QUANTILES / std / 1.5).square()) / std)


@pytest.mark.parametrize(("levels", "clip"), [(2, 1.0), (3, 1.0), (4, 1.5), (8, 2.0)])
def test_a_gaussian_takes_the_levels_as_often_as_the_edges_say(levels: int, clip: float) -> None:
    edges = (level_values(levels, clip)[1:] + level_values(levels, clip)[:-1]).double() / 2
    below = torch.special.ndtr(clip * torch.atanh(edges / clip))
    expected = torch.cat([below, torch.ones(1)]).diff(prepend=torch.zeros(1, dtype=torch.float64))
    chosen = quantizer(levels, clip)(QUANTILES).levels
    share = (chosen == level_values(levels, clip)).double().mean(0)
    torch.testing.assert_close(share, expected, atol=1e-3, rtol=0)
    assert -(share * share.log2()).sum() > 0.85 * math.log2(levels)  # no level is wasted
