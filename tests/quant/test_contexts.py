"""Contexts where there are no neighbours; those of neighbours are in codecs/test_entropy_contexts."""

from __future__ import annotations

import pytest
import torch

from bitseam.errors import CodecError
from bitseam.quant.contexts import check_contexts, contexts_of, wavefronts


@pytest.mark.parametrize("contexts", [1, 3, 5, 15])
@pytest.mark.parametrize("shape", [(), (7,), (4, 3), (2, 2, 4, 3)])
def test_what_is_no_image_is_in_the_middle_context(contexts: int, shape: tuple[int, ...]) -> None:
    found = contexts_of(torch.zeros(shape, dtype=torch.uint8), 5, contexts)
    assert found.shape == shape
    assert found.dtype == torch.int32
    assert (found == contexts // 2).all()


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3)])
def test_contexts_are_on_the_device_of_the_levels(shape: tuple[int, ...]) -> None:
    found = contexts_of(torch.zeros(shape, dtype=torch.uint8, device="meta"), 5, 3)
    assert found.device.type == "meta"
    assert found.shape == shape


def test_positions_of_a_front_ascend() -> None:
    for positions in wavefronts(4096):
        assert (positions.diff() > 0).all()


@pytest.mark.parametrize("contexts", [0, -1, 2, 14, 16, 17, 3.0, True])
def test_contexts_out_of_range_are_refused(contexts: int) -> None:
    with pytest.raises(CodecError, match="contexts must be an odd number from 1 to 15"):
        check_contexts(contexts)


def test_contexts_in_range() -> None:
    for contexts in range(1, 16, 2):
        check_contexts(contexts)
