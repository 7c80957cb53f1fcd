import pytest
import torch

from bitseam.codecs import EntropyUniform
from bitseam.quant import RateFSQ

WIDTH = 6


def features(tokens: int = 4000, seed: int = 0) -> torch.Tensor:
    """(tokens, WIDTH), logistic: what the model of rate assumes."""
    uniform = torch.rand(tokens, WIDTH, generator=torch.Generator().manual_seed(seed)).clamp(1e-6, 1 - 1e-6)
    return uniform.logit() * torch.arange(1, WIDTH + 1)


def calibrated(levels: int = 33, clip: float = 6.0) -> RateFSQ:
    quantizer = RateFSQ(WIDTH, WIDTH, levels, clip)
    quantizer.calibrate(features())
    return quantizer


def test_told_bits_are_what_codes_take() -> None:
    quantizer = calibrated().eval()
    quantized = quantizer(features(seed=1))
    codec = EntropyUniform(33, 16.0, groups=WIDTH)
    codec = codec.learned(codec.counts(quantizer(features()).levels))
    sent = 8 * len(codec.encode(quantized.levels)) / quantized.levels.numel()
    assert quantized.distortion.item() == pytest.approx(sent, rel=0.02)
    assert quantizer.train()(features(seed=1)).distortion.item() == pytest.approx(sent, rel=0.03)  # of y + u


def test_near_identity_at_the_start() -> None:
    quantizer = calibrated(65, 6.0).eval()
    mean, step = quantizer.statistics()
    back = quantizer(features()).levels * step + mean
    assert (back - features()).square().mean() < 0.01 * features().square().mean()


def test_rate_alone_silences_every_channel() -> None:
    quantizer = calibrated()
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    torch.manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        quantizer(features(200)).distortion.backward()
        optimizer.step()
    quantized = quantizer.eval()(features(seed=1))
    assert quantized.distortion < 0.05
    assert (quantized.levels != 0).float().mean() < 0.01


def test_a_channel_that_the_task_needs_keeps_its_bits() -> None:
    quantizer = calibrated()
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    torch.manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        x = features(200)
        quantized = quantizer(x)
        task = (quantized.levels[:, 2] - x[:, 2] / x[:, 2].std()).square().mean()
        (task + 0.02 * quantized.distortion).backward()
        optimizer.step()
    silent = (quantizer.eval()(features(seed=1)).levels != 0).float().mean(dim=0)
    assert silent[2] > 0.2
    assert silent[[0, 1, 3, 4, 5]].max() < 0.05


def test_statistics_stay_while_training() -> None:
    quantizer = calibrated()
    before = quantizer.statistics()
    quantizer.train()(10 * features())
    assert all(torch.equal(one, other) for one, other in zip(before, quantizer.statistics(), strict=True))
