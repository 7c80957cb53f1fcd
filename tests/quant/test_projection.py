"""LevelProjection: from levels back to features."""

import pytest
import torch
from quantizer_examples import WIDTH, features, rd_fsq

from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import RDFSQ, LearnedClipFSQ, LevelProjection, TanhFSQ, semi_orthogonal


@pytest.mark.parametrize(("kind", "clip"), [(RDFSQ, 6.0), (LearnedClipFSQ, 6.0), (TanhFSQ, 99.0)])
def test_projection_undoes_the_quantizer_when_levels_are_fine(kind: type[RDFSQ], clip: float) -> None:
    quantizer, projection = rd_fsq(levels=65536, clip=clip, kind=kind).eval(), LevelProjection(WIDTH, WIDTH)
    projection.calibrate(*quantizer.statistics())
    x = features()
    torch.testing.assert_close(projection(quantizer(x).levels), x, atol=2e-2, rtol=0)


def test_projection_of_fewer_channels_is_the_orthogonal_projection() -> None:
    quantizer, projection = rd_fsq(channels=5, levels=4096, clip=6.0).eval(), LevelProjection(5, WIDTH)
    projection.calibrate(*quantizer.statistics())
    x, basis = features(), semi_orthogonal(5, WIDTH)
    torch.testing.assert_close(projection(quantizer(x).levels), x @ basis.T @ basis, atol=2e-2, rtol=0)


@pytest.mark.parametrize("rotated", [False, True])
def test_projection_is_of_levels_turned_spread_and_moved(rotated: bool) -> None:
    projection = LevelProjection(3, 4, rotated)
    due = {"weight", "bias", "mean", "std"} | ({"rotation"} if rotated else set())
    assert projection.state_dict().keys() == due
    assert not rotated or projection.rotation.dtype == torch.int8
    generator = torch.Generator().manual_seed(0)
    levels, mean = torch.randn(2, 3, generator=generator), torch.randn(3, generator=generator)
    std, turn = torch.tensor([0.5, 2.0, 3.0]), torch.randint(-127, 128, (3, 3), generator=generator).to(torch.int8)
    torch.testing.assert_close(projection(levels), levels @ semi_orthogonal(3, 4))  # fresh
    projection.calibrate(mean.requires_grad_(), std)
    assert not projection.mean.requires_grad
    if rotated:
        projection.rotate(turn)
    with torch.no_grad():
        projection.bias.copy_(torch.arange(4.0))
    spread = levels * std @ (turn.float() / 127 if rotated else torch.eye(3)).T + mean
    torch.testing.assert_close(projection(levels), spread @ semi_orthogonal(3, 4) + torch.arange(4.0))


def test_projection_refuses_bad_statistics() -> None:
    projection, ones = LevelProjection(5, WIDTH), torch.ones(5)
    with pytest.raises(CodecError, match="std has shape"):
        projection.calibrate(ones, torch.ones(6))
    with pytest.raises(NonFiniteError, match="mean"):
        projection.calibrate(ones * float("nan"), ones)
    for bad in (ones * 0, -ones, torch.tensor([1.0, 1, 1, 1, 0])):
        with pytest.raises(CodecError, match="positive"):
            projection.calibrate(ones, bad)
    with pytest.raises(CodecError, match="mean has shape"):
        projection.calibrate(torch.ones(1, 5), ones)
    with pytest.raises(NonFiniteError, match="std"):
        projection.calibrate(ones, ones * float("inf"))
    assert projection.std.tolist() == [1] * 5
