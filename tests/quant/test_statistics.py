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


@pytest.mark.parametrize("momentum", [-0.01, 1.01, float("nan")])
def test_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(CodecError, match="momentum"):
        ChannelStatistics(3, momentum)


@pytest.mark.parametrize("momentum", [0, 1])
def test_momentum_may_forget_nothing_or_all(momentum: float) -> None:
    statistics = ChannelStatistics(3, momentum).train()
    statistics.calibrate(batch(0))
    statistics(batch(1) + 5)
    kept = batch(0) if momentum == 0 else batch(1) + 5
    torch.testing.assert_close(statistics.running_mean, kept.reshape(-1, 3).mean(0))
    torch.testing.assert_close(statistics.running_var, kept.reshape(-1, 3).var(0, correction=0))


def test_one_token_counts_and_two_are_enough_to_calibrate() -> None:
    statistics = ChannelStatistics(1, momentum=0.5).train()
    statistics.calibrate(torch.tensor([[0.0], [2.0]], requires_grad=True))
    assert (statistics.mean.item(), statistics.std.item()) == (1, 1)
    statistics(torch.tensor([[5.0]]))
    assert (statistics.running_mean.item(), statistics.running_var.item()) == (3, 0.5 + 4)
    statistics.count(torch.tensor([[5.0]], requires_grad=True))
    assert not any(buffer.requires_grad for buffer in statistics.buffers())


@pytest.mark.parametrize(
    ("mean", "std", "follows"), [(0.08, 1, False), (0.09, 1, True), (0, 0.88, True), (0, 1.05, False)]
)
def test_drift_is_the_root_mean_square_over_channels_of_mean_or_deviation(
    mean: float, std: float, follows: bool
) -> None:
    statistics = ChannelStatistics(3, momentum=0.5).train()
    statistics.calibrate(batch(0))
    before = statistics.mean.clone(), statistics.std.clone()
    statistics.running_mean[2] += mean * statistics.std[2]  # one channel of three: a root of three less
    statistics.running_var[2] *= std**2
    statistics(torch.zeros(0, 3))
    due = (statistics.running_mean, statistics.running_var.sqrt()) if follows else before
    torch.testing.assert_close(statistics.mean, due[0])
    torch.testing.assert_close(statistics.std, due[1])


def test_a_fresh_one_is_the_identity() -> None:
    state = ChannelStatistics(2, momentum=0.5).state_dict()
    zeros, ones, no = torch.zeros(2), torch.ones(2), torch.tensor(False)
    due = {"mean": zeros, "running_mean": zeros, "std": ones, "running_var": ones, "calibrated": no, "frozen": no}
    assert state.keys() == due.keys()
    assert all(torch.equal(state[name], value) for name, value in due.items())


def test_calibration_on_one_token_is_refused_and_an_empty_batch_counts_nothing() -> None:
    statistics = ChannelStatistics(3, momentum=0.1).train()
    with pytest.raises(CodecError, match="two tokens"):
        statistics.calibrate(torch.zeros(1, 3))
    statistics.calibrate(batch(0))
    before = statistics.mean.clone()
    assert statistics(torch.zeros(0, 3)).shape == (0, 3)
    assert torch.equal(statistics.mean, before)
