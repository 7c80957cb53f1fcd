"""RD-FSQ as the paper has it: one mean and one deviation of the whole batch."""

import pytest
import torch
from quantizer_examples import WIDTH, features, tensor_rd_fsq

from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import TensorRDFSQ
from bitseam.quant.uniform import level_values


def test_the_papers_variant_is_three_deviations_of_the_batch() -> None:
    torch.manual_seed(0)
    quantizer, x = TensorRDFSQ(WIDTH, 5, 4), features().requires_grad_()
    out = quantizer(x)
    z = (x @ quantizer.project.weight.T + quantizer.project.bias).detach()
    unit = (z - z.mean()) / (3 * z.std(correction=0))
    table = level_values(4, 1.0)
    assert torch.equal(out.levels, table[(unit[..., None] - table).abs().argmin(-1)])
    weight = torch.randn(out.levels.shape, generator=torch.Generator().manual_seed(1))
    (out.levels * weight).sum().backward()  # by z, the statistics held constant
    inside = torch.where(unit.abs() <= 1, weight / (3 * z.std(correction=0)), 0)
    torch.testing.assert_close(x.grad, inside @ quantizer.project.weight.detach())


def test_the_papers_variant_of_equal_features_is_in_the_middle() -> None:
    quantizer = TensorRDFSQ(2, 2, 5)
    with torch.no_grad():
        quantizer.project.weight.copy_(torch.eye(2))
        quantizer.project.bias.zero_()
    assert (quantizer(torch.full((4, 2), 3.0)).levels == 0).all()


def test_the_papers_variant_refuses_what_it_cannot_do() -> None:
    for levels, channels in ((1, 4), (4, 5)):
        with pytest.raises(CodecError):
            TensorRDFSQ(4, channels, levels)
    quantizer = tensor_rd_fsq()
    with torch.no_grad():
        quantizer.project.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="projected features"):
        quantizer(features())


def test_the_papers_variant_breaks_that() -> None:
    quantizer = tensor_rd_fsq()
    x, others = features(), features(seed=7) * 10 + 3
    alone, mixed = quantizer(x).levels[0], quantizer(torch.cat([x[:1], others[1:]])).levels[0]
    assert (alone != mixed).float().mean() > 0.2
