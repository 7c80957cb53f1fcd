import numpy as np
import pytest
import torch

from bitseam.errors import CodecError
from bitseam.quant import RDFSQ
from bitseam.quant.uniform import from_indices, level_values, to_indices

GRIDS = [(2, 0.8), (3, 1.22), (4, 1.49), (5, 1.0), (16, 2.51), (255, 3.0), (256, 3.0), (257, 1.0), (65536, 2.0)]


@pytest.mark.parametrize(("levels", "clip"), GRIDS)
def test_levels_are_even_symmetric_and_their_own_nearest(levels: int, clip: float) -> None:
    values = level_values(levels, clip)
    assert values.shape == (levels,)
    assert values.dtype == torch.float32
    assert torch.equal(values, -values.flip(0))
    assert values[-1] == torch.tensor(clip)
    torch.testing.assert_close(values.diff(), torch.full((levels - 1,), 2 * clip / (levels - 1)), rtol=1e-2, atol=0)
    assert torch.equal(to_indices(values, levels, clip).long(), torch.arange(levels))
    assert torch.equal(from_indices(to_indices(values, levels, clip), levels, clip), values)


@pytest.mark.parametrize(("levels", "clip"), GRIDS)
def test_the_level_chosen_is_the_nearest(levels: int, clip: float) -> None:
    z = torch.randn(300, generator=torch.Generator().manual_seed(0)) * clip
    chosen = from_indices(to_indices(z, levels, clip), levels, clip)
    nearest = (z[:, None] - level_values(levels, clip)).abs().amin(dim=1)
    torch.testing.assert_close((z - chosen).abs(), nearest, rtol=0, atol=2e-2 * clip / (levels - 1))


def test_ties_go_up_and_the_far_away_to_the_ends() -> None:
    z = torch.tensor([-1e30, -2.0, -1.0, 0.0, 1.0, 2.0, 1e30])  # levels -1.5 -0.5 0.5 1.5
    assert to_indices(z, 4, 1.5).tolist() == [0, 0, 1, 2, 3, 3, 3]


# Max 1960, table II, gives these to four digits; the clip is the outermost level, half a step inside the bin's edge.
@pytest.mark.parametrize(
    ("levels", "clip", "mse"), [(2, 0.798, 0.3634), (3, 1.224, 0.1902), (4, 1.494, 0.1188), (8, 2.051, 0.03744)]
)
def test_best_clips_give_the_textbook_error_on_a_gaussian(levels: int, clip: float, mse: float) -> None:
    probability = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    z = torch.special.ndtri(probability).float()  # every quantile once: a sample without noise

    def error(at: float) -> float:
        return float((z - from_indices(to_indices(z, levels, at), levels, at)).square().double().mean())

    assert error(clip) == pytest.approx(mse, rel=2e-3)
    assert error(clip) < min(error(clip * 0.9), error(clip * 1.1))


@pytest.mark.parametrize(("levels", "clip"), GRIDS)
def test_levels_are_rounded_once(levels: int, clip: float) -> None:
    exact = (2 * np.arange(levels) - (levels - 1)) * (clip / (levels - 1))
    assert np.array_equal(level_values(levels, clip).numpy(), exact.astype(np.float32))


@pytest.mark.parametrize(("levels", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int32)])
def test_indices_take_a_byte_where_one_holds_them(levels: int, dtype: torch.dtype) -> None:
    assert to_indices(torch.tensor([9.0]), levels, 1.0).dtype == dtype
    assert to_indices(torch.tensor([9.0]), levels, 1.0).tolist() == [levels - 1]


@pytest.mark.parametrize("clip", [1e-6, 1, 1e6])
def test_clips_may_be_as_small_and_large_as_is_told(clip: float) -> None:
    RDFSQ(4, 4, 2, clip)


@pytest.mark.parametrize("levels", [1, 0, -4, 65537, 4.0, True])
def test_levels_out_of_range_are_refused(levels: int) -> None:
    with pytest.raises(CodecError, match="levels"):
        RDFSQ(4, 4, levels, 1.5)


@pytest.mark.parametrize("clip", [0.0, -1.0, 9.9e-7, 1.01e6, float("nan"), float("inf"), "2"])
def test_clips_out_of_range_are_refused(clip: float) -> None:
    with pytest.raises(CodecError, match="clip"):
        RDFSQ(4, 4, 4, clip)
