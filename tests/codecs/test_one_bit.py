import pytest
import torch

from bitseam.codecs import OneBit, Stochastic
from bitseam.codecs.one_bit import _least_error_scale
from bitseam.errors import CodecError

GAUSSIAN = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000).float()


def sample(shape: tuple[int, ...] = (4, 9)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def decoded(codec: OneBit, x: torch.Tensor, draws: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([codec.decode(codec.encode(x, generator), x.shape) for _ in range(draws)]).double()


def error(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Expected squared error of each value at a scale."""
    return torch.where(x.abs() < scale, scale.square() - x.square(), (x.abs() - scale).square())


@pytest.mark.parametrize("codec", [OneBit(), OneBit(5), OneBit(5, "least-error"), OneBit("token", "least-error")])
def test_right_on_average_up_to_the_scale(codec: OneBit) -> None:
    x, draws = sample(), 1500
    back = decoded(codec, x, draws)
    reach = back[0].abs().float()  # each value decodes to its block's scale or to minus that
    deviation = back.std(dim=0) / draws**0.5
    # As in test_stochastic: four deviations of 36 values, for a fixed seed.
    assert ((back.mean(dim=0) - x.clamp(-reach, reach)).abs() <= 4 * deviation + 1e-2 * reach).all()
    assert codec.unbiased == (reach >= x.abs()).all()


def test_the_largest_scale_is_stochastic_rounding_to_two_levels() -> None:
    x = sample()
    one, two = (codec.encode(x, torch.Generator().manual_seed(0)) for codec in (OneBit(7), Stochastic(2, 7)))
    assert one == two


@pytest.mark.parametrize("scale", ["largest", "least-error"])
def test_the_error_is_what_theory_expects(scale: str) -> None:
    codec = OneBit("token", scale)
    back = decoded(codec, GAUSSIAN, 20)
    measured = (back - GAUSSIAN).square().mean()
    assert float(measured) == pytest.approx(float(error(GAUSSIAN, back[0].abs().float()).mean()), rel=1e-2)


def test_the_least_error_scale_is_that_of_a_gaussian() -> None:
    scale = OneBit("token", "least-error").decode(OneBit("token", "least-error").encode(GAUSSIAN), (20_000,)).abs()
    density = torch.exp(-torch.tensor(0.647).square() / 2) / (2 * torch.pi) ** 0.5
    assert float(2 * density) == pytest.approx(0.647, abs=1e-3)  # the scale equals the magnitudes' mass beyond it
    assert scale.unique().tolist() == pytest.approx([0.647], rel=5e-3)  # bfloat16


@pytest.mark.parametrize("size", [1, 2, 3, 10, 257])
def test_no_other_scale_has_less_error(size: int) -> None:
    x = sample((50, size)).pow(3)
    scale = _least_error_scale(x, x.numel())[:, None]
    least = error(x, scale).sum(dim=1)
    for factor in torch.linspace(0.5, 2, 61):
        assert (least <= error(x, scale * factor).sum(dim=1) * (1 + 1e-5)).all()
    codec = OneBit("token", "least-error")
    sent = codec.decode(codec.encode(x), x.shape).abs()[:, :1]
    assert (sent >= scale).all()
    assert (sent <= scale * (1 + 2**-7)).all()


def test_the_last_blocks_filling_does_not_count() -> None:
    codec, x = OneBit(7, "least-error"), sample((10,))
    tail = codec.decode(codec.encode(x), (10,))[7:]
    assert torch.equal(tail.abs(), codec.decode(codec.encode(x[7:]), (3,)).abs())


@pytest.mark.parametrize(("block", "scale"), [(0, "largest"), ("token", "mean"), ("token", 1.0), ("row", "largest")])
def test_options_out_of_range_are_refused(block: int | str, scale: str) -> None:
    with pytest.raises(CodecError, match=r"block|scale"):
        OneBit(block, scale)
