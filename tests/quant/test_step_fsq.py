import pytest
import torch

from bitseam.errors import CodecError
from bitseam.quant import LevelProjection, StepFSQ
from bitseam.quant.uniform import level_values

QUANTILES = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()[:, None]


def quantizer(levels: int, *steps: float) -> StepFSQ:
    stepped = StepFSQ(len(steps), len(steps), levels, steps)
    stepped.calibrate(5 * QUANTILES.expand(-1, len(steps)) + 3)
    return stepped.eval()


def test_levels_cross_as_whole_steps() -> None:
    levels = quantizer(7, 0.5, 1.0, 2.0)(5 * QUANTILES.expand(-1, 3) + 3).levels
    assert torch.isin(levels, level_values(7, 3.0)).all()
    z = QUANTILES / QUANTILES.std(correction=0)
    for channel, step in enumerate((0.5, 1.0, 2.0)):
        inside = (z[:, 0].abs() < 3.5 * step).nonzero()
        assert ((levels[inside, channel] * step - z[inside, 0]).abs() <= step / 2 + 1e-5).all()
    assert levels[:, 0].abs().max() == 3


def test_the_projection_undoes_the_steps() -> None:
    stepped, projection = quantizer(65535, 0.001, 0.01), LevelProjection(2, 2)
    projection.calibrate(*stepped.statistics())
    x = 5 * QUANTILES.expand(-1, 2) + 3
    torch.testing.assert_close(projection(stepped(x).levels), x, atol=0.026, rtol=0)


def test_a_dropped_channel_has_nothing_but_its_mean_and_takes_no_gradient() -> None:
    stepped, projection = quantizer(5, 0.0, 1.0), LevelProjection(2, 2)
    projection.calibrate(*stepped.statistics())
    x = (100 * QUANTILES.expand(-1, 2) + 3).requires_grad_()
    levels = stepped(x).levels
    levels.retain_grad()
    decoded = projection(levels)
    assert (levels[:, 0] == 0).all()
    torch.testing.assert_close(decoded[:, 0], torch.full((20_000,), 3.0), atol=1e-4, rtol=0)
    decoded.sum().backward()
    assert (x.grad[:, 0] == 0).all()
    assert x.grad[:, 1].abs().max() > 0
    assert levels.grad[:, 0].abs().max() < 1e-5 * levels.grad[:, 1].abs().max()  # so it takes no bits on the way down


def test_without_steps_all_are_one() -> None:
    assert StepFSQ(3, 2, 5).step.tolist() == [1, 1]
    assert StepFSQ(2, 2, 5, (1, 2)).step.dtype == torch.float32


def test_steps_may_be_as_small_and_large_as_is_told() -> None:
    steps = (1e-3, 1e3, 0.0)
    torch.testing.assert_close(StepFSQ(3, 3, 5, steps).step, torch.tensor(steps), rtol=0, atol=0)
    deviations = quantizer(5, *steps).statistics()[1] / quantizer(5, 1.0).statistics()[1]
    torch.testing.assert_close(deviations, torch.tensor([1e-3, 1e3, 1e-6]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("levels", "steps", "complaint"),
    [
        (5, (1.0,), "1 steps for 2 channels"),
        (5, (1.0, -1.0), "step of channel 1 must be 0 or from"),
        (5, (9.9e-4, 1.0), "step of channel 0"),
        (5, (1.0, 1001.0), "step of channel 1"),
        (5, (1.0, float("nan")), "step of channel 1"),
        (5, (1.0, float("inf")), "step of channel 1"),
        (1, (1.0, 1.0), "levels"),
    ],
)
def test_what_is_out_of_range_is_refused(levels: int, steps: tuple[float, ...], complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        StepFSQ(2, 2, levels, steps)
