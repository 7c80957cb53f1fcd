import pytest
import torch

from bitseam.errors import CodecError
from bitseam.quant import ChannelStatistics


def batch(seed: int, tokens: int = 64) -> torch.Tensor:
    z = torch.randn(2, tokens, 3, generator=torch.Generator().manual_seed(seed))
    return z * torch.tensor([0.5, 1.0, 4.0]) + torch.tensor([-2.0, 0.0, 7.0])


def test_calibrated_channels_come_out_with_zero_mean_and_unit_deviation() -> None:
    statistics = ChannelStatistics(3, momentum=0.1)
    statistics.calibrate(batch(0))
    out = statistics(batch(0)).reshape(-1, 3)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_a_training_batch_is_normalised_by_what_came_before_it() -> None:
    statistics = ChannelStatistics(3, momentum=0.5)
    statistics.calibrate(batch(0))
    mean, std = statistics.mean.clone(), statistics.std.clone()
    z = batch(1) + 5
    assert torch.equal(statistics.train()(z), (z - mean) / std)
    assert not torch.equal(statistics.running_mean, mean)


def test_counting_is_the_mixture_of_old_and_new() -> None:
    statistics = ChannelStatistics(3, momentum=0.5)
    statistics.calibrate(batch(0))
    statistics.train()(batch(1) + 5)
    both = torch.cat([batch(0), batch(1) + 5]).reshape(-1, 3)  # half the weight each
    torch.testing.assert_close(statistics.running_mean, both.mean(0))
    torch.testing.assert_close(statistics.running_var, both.var(0, correction=0))


@pytest.mark.parametrize(("shift", "follows"), [(0.02, False), (0.2, True)])
def test_what_is_in_use_follows_only_a_real_drift(shift: float, follows: bool) -> None:
    statistics = ChannelStatistics(3, momentum=0.5)
    statistics.calibrate(batch(0))
    mean, std = statistics.mean.clone(), statistics.std.clone()
    moved = batch(0) + 2 * shift * std  # half of it is counted
    statistics.train()(moved)
    assert torch.equal(statistics.mean, mean)  # not before the next batch is normalised
    out = statistics(batch(0))
    assert torch.equal(statistics.mean, mean) != follows
    assert torch.equal(out, (batch(0) - statistics.mean) / statistics.std)


@pytest.mark.parametrize("how", ["eval", "freeze"])
def test_nothing_is_counted_in_eval_or_frozen(how: str) -> None:
    statistics = ChannelStatistics(3, momentum=0.5).train()
    statistics.calibrate(batch(0))
    getattr(statistics, how)()
    before = {name: value.clone() for name, value in statistics.state_dict().items()}
    statistics(batch(1) + 5)
    statistics(batch(1) + 5)
    assert all(torch.equal(value, before[name]) for name, value in statistics.state_dict().items())


def test_a_checkpoint_remembers_statistics_and_flags() -> None:
    statistics = ChannelStatistics(3, momentum=0.5)
    statistics.calibrate(batch(0))
    statistics.freeze()
    other = ChannelStatistics(3, momentum=0.5)
    other.load_state_dict(statistics.state_dict())
    assert torch.equal(other.train()(batch(1) + 5), statistics.eval()(batch(1) + 5))
    assert torch.equal(other.mean, statistics.mean)


def test_autograd_sees_the_statistics_as_constants() -> None:
    statistics = ChannelStatistics(3, momentum=0.5)
    statistics.calibrate(batch(0))
    z = batch(1).requires_grad_()
    slope = 1 / statistics.std
    statistics(z).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, slope.expand_as(z))


def test_a_dead_channel_stays_finite_and_small() -> None:
    statistics = ChannelStatistics(1, momentum=0.1)
    statistics.calibrate(torch.full((10, 1), 3.0))
    out = statistics(torch.tensor([[3.0], [3.00001]]))
    assert out[0] == 0
    assert out.abs().max() < 0.2


def test_uncalibrated_is_refused() -> None:
    with pytest.raises(CodecError, match=r"calibrate\(features\)"):
        ChannelStatistics(3, momentum=0.1)(batch(0))


def test_calibration_on_one_token_is_refused_and_an_empty_batch_counts_nothing() -> None:
    statistics = ChannelStatistics(3, momentum=0.1).train()
    with pytest.raises(CodecError, match="two tokens"):
        statistics.calibrate(torch.zeros(1, 3))
    statistics.calibrate(batch(0))
    before = statistics.mean.clone()
    assert statistics(torch.zeros(0, 3)).shape == (0, 3)
    assert torch.equal(statistics.mean, before)
