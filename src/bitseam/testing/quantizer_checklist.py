"""What every quantizer must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import Quantizer

Make = Callable[[], Quantizer]


def features(width: int, batch: int = 3) -> Tensor:
    """Features (batch, 16, width) whose channels have deviations from .2 to 5 and other means."""
    spread = torch.linspace(0.2, 5, width)
    return torch.randn(batch, 16, width, generator=torch.Generator().manual_seed(0)) * spread + spread.flip(0)


class QuantizerChecklist:
    """A test class to inherit: give it `cases`, and a name that pytest collects.

    cases: what makes a quantizer that is calibrated, where it must be, by the name of the case.
    """

    cases: ClassVar[Mapping[str, Make]]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Each check over all cases."""
        if "make" in metafunc.fixturenames:
            metafunc.parametrize("make", list(self.cases.values()), ids=list(self.cases))

    @pytest.mark.parametrize("leading", [(), (0,), (1,), (2, 3, 5)])
    def test_any_leading_dimensions(self, make: Make, leading: tuple[int, ...]) -> None:
        quantizer = make()
        out = quantizer(torch.randn(*leading, quantizer.width))
        assert out.levels.shape == (*leading, quantizer.channels)
        assert out.distortion.shape == ()
        assert torch.isfinite(out.distortion)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_not_finite_is_refused_with_count_and_place(self, make: Make, bad: float) -> None:
        quantizer = make()
        x = features(quantizer.width)
        x[1, 2, 3] = x[2, 0, 0] = bad
        with pytest.raises(NonFiniteError, match=rf"2 of {x.numel()} .* \(1, 2, 3\)"):
            quantizer(x)

    def test_another_width_is_refused(self, make: Make) -> None:
        quantizer = make()
        with pytest.raises(CodecError, match=f"width {quantizer.width}"):
            quantizer(torch.zeros(2, quantizer.width - 1))

    def test_works_in_float32_under_autocast_and_on_bfloat16(self, make: Make) -> None:
        quantizer = make().eval()
        x = features(quantizer.width).bfloat16()
        plain = quantizer(x.float())
        with torch.autocast("cpu", torch.bfloat16):
            out = quantizer(x)
        assert out.levels.dtype == out.distortion.dtype == torch.float32
        assert torch.equal(out.levels, plain.levels)
        assert torch.equal(out.distortion, plain.distortion)

    def test_is_differentiable_to_the_features_and_every_parameter(self, make: Make) -> None:
        quantizer = make().train()
        x = features(quantizer.width).requires_grad_()
        out = quantizer(x)
        (out.levels.square().sum() + 0.25 * out.distortion).backward()
        for name, tensor in [("features", x), *quantizer.named_parameters()]:
            assert tensor.grad is not None, name
            assert tensor.grad.abs().sum() > 0, name
