import pytest
import torch

from bitseam.quant import LearnedClipFSQ
from bitseam.quant.uniform import level_values

QUANTILES = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()[:, None]


def quantizer(levels: int, clip: float, channels: int = 1) -> LearnedClipFSQ:
    learned = LearnedClipFSQ(channels, channels, levels, clip)
    learned.calibrate(QUANTILES.expand(-1, channels))
    return learned.eval()


def test_levels_cross_in_units_of_the_clip() -> None:
    learned = quantizer(4, 1.5, channels=2)
    with torch.no_grad():
        learned.log_clip[1] += 1
    levels = learned(QUANTILES.expand(-1, 2)).levels
    assert torch.isin(levels, level_values(4, 1.0)).all()
    assert levels[:, 1].abs().mean() < 0.8 * levels[:, 0].abs().mean()
    assert learned.statistics()[1][1] == pytest.approx(learned.statistics()[1][0] * 2.71828)


def test_the_tasks_gradient_reaches_features_and_clip() -> None:
    learned, x = quantizer(4, 1.5), QUANTILES.clone().requires_grad_()
    task = torch.randn(QUANTILES.shape, generator=torch.Generator().manual_seed(0))
    (learned(x).levels * task).sum().backward()
    std = QUANTILES.std(correction=0)
    unit = QUANTILES / std / 1.5
    inside = (unit.abs() <= 1).float()
    torch.testing.assert_close(x.grad, task * inside / std / 1.5)
    # d(z / clip) / d(log clip) is -z / clip; beyond the clip, moving it does not move the level.
    torch.testing.assert_close(learned.log_clip.grad, -(task * unit * inside).sum()[None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [2, 4, 16])
@pytest.mark.parametrize("clip", [0.7, 3.0])
def test_the_distortions_gradient_is_its_slope(levels: int, clip: float) -> None:
    learned, step = quantizer(levels, clip), 1e-2
    learned(QUANTILES).distortion.backward()
    with torch.no_grad():
        learned.log_clip += step
        above = learned(QUANTILES).distortion
        learned.log_clip -= 2 * step
        below = learned(QUANTILES).distortion
    assert float(learned.log_clip.grad) == pytest.approx(float(above - below) / (2 * step), rel=2e-2)


# Max 1960, table II, as in test_uniform_grid: best clip and the share of the variance lost there.
@pytest.mark.parametrize(
    ("levels", "clip", "mse"), [(2, 0.798, 0.3634), (3, 1.224, 0.1902), (4, 1.494, 0.1188), (8, 2.051, 0.03744)]
)
@pytest.mark.parametrize("start", [0.5, 3.0])
def test_the_distortion_draws_the_clip_to_the_textbooks(levels: int, clip: float, mse: float, start: float) -> None:
    learned = quantizer(levels, start)
    optimiser = torch.optim.Adam([learned.log_clip], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 250)
    for _ in range(250):
        loss = learned(QUANTILES).distortion
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert float(learned.log_clip.detach().exp()) == pytest.approx(clip, rel=1e-2)
    assert float(loss.detach()) == pytest.approx(mse, rel=5e-3)


def test_the_distortion_does_not_reward_shrunken_features() -> None:
    learned = quantizer(4, 1.5)
    with torch.no_grad():
        usual = learned(QUANTILES).distortion
        learned.project.weight.mul_(0.2)
        shrunken = learned(QUANTILES).distortion
    assert shrunken > 2 * usual


def test_no_tokens_have_no_distortion() -> None:
    assert quantizer(4, 1.5)(torch.zeros(0, 1)).distortion == 0
