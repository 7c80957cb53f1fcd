"""PrincipalDirections by exact values: what is calibrated, counted, and when what is in use follows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bitseam.errors import CodecError
from bitseam.quant.principal import PrincipalDirections

STEP = 0.5
NOTHING = torch.zeros(0, 2)  # a batch that counts nothing: what is in use may follow all the same


def turned(degrees: float, strong: float = 4.0, weak: float = 1.0) -> Tensor:
    """Covariance (2, 2) of two directions, the strong one at that angle."""
    angle = math.radians(degrees)
    along = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return along @ torch.diag(torch.tensor([strong, weak])) @ along.T


def calibrated(degrees: float = 0.0) -> PrincipalDirections:
    """Directions (2, 2) of four tokens with that covariance, of mean (3, -1)."""
    directions = PrincipalDirections(2, STEP)
    root = torch.linalg.cholesky(turned(degrees))
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    directions.calibrate(corners @ root.T + torch.tensor([3.0, -1.0]))
    return directions.train()


def bits(variance: list[float]) -> float:
    """A token's, of components of these shares of the variance: each error has a share of step^2 / 12."""
    return sum(0.5 * math.log2(1 + share * 12 * len(variance) / STEP**2) for share in variance)


def test_a_fresh_one_is_the_identity() -> None:
    state = PrincipalDirections(2, STEP).state_dict()
    expected = {
        "mean": torch.zeros(2),
        "scale": torch.ones(()),
        "rotation": torch.tensor([[127, 0], [0, 127]], dtype=torch.int8),
        "running_mean": torch.zeros(2),
        "running_covariance": torch.eye(2),
        "lost": torch.zeros((), dtype=torch.float64),
        "unchecked": torch.zeros(2, dtype=torch.int64),
        "calibrated": torch.tensor(False),
    }
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)


def test_calibration_takes_mean_scale_and_directions_of_its_tokens() -> None:
    z = torch.randn(2, 300, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 2, 3, 4]) + 7
    z = (z @ torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]).requires_grad_()
    directions = PrincipalDirections(5, STEP)
    directions.lost.fill_(9)
    directions.unchecked.fill_(9)
    directions.calibrate(z)
    tokens = z.detach().reshape(-1, 5).double().numpy()
    covariance = np.cov(tokens.T, bias=True)
    strength, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(directions.mean, tokens.mean(0), rtol=1e-5)
    np.testing.assert_allclose(directions.running_covariance, covariance, rtol=1e-4, atol=1e-4)
    assert float(directions.scale) == pytest.approx(np.sqrt(strength.mean()), rel=1e-5)
    along = directions.rotation.double().numpy()
    np.testing.assert_allclose(np.abs(along), np.abs(127 * vectors[:, ::-1]), atol=0.51)  # strongest first
    assert directions.rotation.dtype == torch.int8
    assert torch.equal(directions.directions(), directions.rotation / torch.tensor(127.0))
    components = directions.eval()(z)
    expected = (tokens - tokens.mean(0)) @ (along / 127) / np.sqrt(strength.mean())
    np.testing.assert_allclose(components.detach().reshape(-1, 5), expected, atol=1e-4)
    assert float(directions.lost) == 0
    assert directions.unchecked.tolist() == [0, 0]
    assert not any(buffer.requires_grad for buffer in directions.buffers())


def test_two_tokens_are_enough() -> None:
    directions = PrincipalDirections(2, STEP)
    directions.calibrate(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    assert directions.mean.tolist() == [1, 0]
    assert float(directions.scale) == pytest.approx(math.sqrt(0.5))
    with pytest.raises(CodecError, match="two tokens"):
        directions.calibrate(torch.zeros(1, 2))


def test_dead_channels_have_a_scale() -> None:
    directions = PrincipalDirections(2, STEP)
    directions.calibrate(torch.ones(4, 2))
    assert float(directions.scale) == pytest.approx(1e-4)


def test_autograd_sees_constants() -> None:
    directions = calibrated(30)
    slope = directions.directions().clone() / directions.scale
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    directions(z).backward(torch.ones(6, 2))
    torch.testing.assert_close(z.grad, slope.sum(1).expand(6, 2))
    assert not any(buffer.requires_grad for buffer in directions.buffers())


@pytest.mark.parametrize("tokens", [1, 50])
def test_counting_is_the_mixture_of_old_and_new(tokens: int) -> None:
    directions = calibrated(30)
    old_mean, old = directions.running_mean.double(), directions.running_covariance.double()
    z = torch.randn(tokens, 2, generator=torch.Generator().manual_seed(0)) * 3 + torch.tensor([1.0, 2.0])
    in_use = directions.mean.clone()
    directions(z)
    new_mean, new = z.double().mean(0), np.cov(z.double().numpy().T, bias=True)
    mean = 0.95 * old_mean + 0.05 * new_mean
    apart = [torch.outer(part - mean, part - mean) for part in (old_mean, new_mean)]
    covariance = 0.95 * (old + apart[0]) + 0.05 * (torch.tensor(new) + apart[1])
    torch.testing.assert_close(directions.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(directions.running_covariance.double(), covariance, rtol=1e-5, atol=1e-5)
    assert directions.unchecked.tolist() == [1, tokens]
    assert torch.equal(directions.mean, in_use)  # a batch counts for those after it
    directions(z[None])
    assert directions.unchecked.tolist() == [2, 2 * tokens]
    directions(NOTHING)
    assert directions.unchecked.tolist() == [2, 2 * tokens]


@pytest.mark.parametrize(
    ("mean", "scale", "follows"),
    [
        # Root mean square over channels, and the scale by itself, each against a tenth of the scale.
        ((0.09, 0.09), 1.0, False),
        ((0.13, 0.0), 1.0, False),
        ((0.15, 0.0), 1.0, True),
        ((-0.11, 0.11), 1.0, True),
        ((0.0, 0.0), 1.09, False),
        ((0.0, 0.0), 1.11, True),
        ((0.0, 0.0), 0.91, False),
        ((0.0, 0.0), 0.89, True),
        ((0.09, 0.09), 1.09, False),
    ],
)
def test_mean_and_scale_follow_a_drift_of_a_tenth(mean: tuple[float, float], scale: float, follows: bool) -> None:
    directions = calibrated()
    before = {name: value.clone() for name, value in directions.state_dict().items()}
    directions.running_mean.add_(torch.tensor(mean) * before["scale"])
    directions.running_covariance.mul_(scale**2)
    directions.eval()(NOTHING)
    assert torch.equal(directions.mean, before["mean"])
    directions.train()(NOTHING)
    used = (directions.running_mean, scale * before["scale"]) if follows else (before["mean"], before["scale"])
    torch.testing.assert_close(directions.mean, used[0])
    torch.testing.assert_close(directions.scale, used[1])
    assert torch.equal(directions.rotation, before["rotation"])


def test_a_rotation_is_renewed_when_it_has_cost_the_bits_of_sending_it() -> None:
    directions = calibrated()
    old = directions.rotation.clone()
    directions.running_covariance.copy_(turned(45))
    directions.running_mean.add_(0.05)  # too little to follow by itself
    saved = bits([0.5, 0.5]) - bits([0.8, 0.2])  # of the variance, along the old and along the best directions
    tokens = int(8 * 4 / saved)  # one more would do
    directions.unchecked.copy_(torch.tensor([7, tokens]))
    directions(NOTHING)
    assert float(directions.lost) == 0  # looked at every eight micro-batches
    assert directions.unchecked.tolist() == [7, tokens]
    directions.unchecked[0] = 8
    directions(NOTHING)
    assert float(directions.lost) == pytest.approx(tokens * saved, rel=1e-5)
    assert directions.unchecked.tolist() == [0, 0]
    assert torch.equal(directions.rotation, old)
    assert not torch.equal(directions.mean, directions.running_mean)
    directions.unchecked.copy_(torch.tensor([9, 1]))
    directions(NOTHING)
    assert directions.rotation.abs().tolist() == [[90, 90], [90, 90]]  # 127 / sqrt(2)
    assert torch.equal(directions.mean, directions.running_mean)
    assert float(directions.lost) == 0
    assert directions.unchecked.tolist() == [0, 0]


def test_a_rotation_that_has_cost_just_as_much_is_not_yet_renewed() -> None:
    directions = calibrated(20)
    directions.running_covariance.copy_(turned(45))
    directions.lost.fill_(8 * 4)
    directions.unchecked.copy_(torch.tensor([8, 0]))
    before = directions.rotation.clone()
    directions(NOTHING)
    assert float(directions.lost) == 8 * 4
    assert torch.equal(directions.rotation, before)


def test_bits_that_rounding_saves_are_no_credit() -> None:
    directions = calibrated(20)  # 119 and 43 of 127: a little less than a whole direction
    directions.unchecked.copy_(torch.tensor([8, 1000]))
    directions(NOTHING)
    assert float(directions.lost) == 0
