"""What every codec must pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from bitseam.codecs import Codec, canonical, codec_from_config
from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import Quantizer
from bitseam.streams.through_codec import ThroughCodec

WIDTH = 12
SHAPES = [(), (0,), (1,), (0, 7), (3, 0), (1, 1), (3, 5, 7), (2, 1, 41), (1025,)]
_DRAWS = 300


def sample(batch: int = 2, seed: int = 0) -> Tensor:
    """Features (batch, 5, 12) from -2.5 to 2.5, the same on every machine."""
    count = batch * 5 * WIDTH
    return (torch.arange(count).mul(7919).add(seed).remainder(1009) / 504 - 1).mul(2.5).reshape(batch, 5, WIDTH)


@dataclass(frozen=True)
class CodecCase:
    """A codec with its options, and what it promises.

    error: the most that a value of `sample()` may lose. digest: first 16 digits of the SHA-256 of what it makes of
    `sample()`, by a generator seeded with 0; "" leaves that out. quantizer: of 12 features, what trains with it;
    None for the codec by itself. deterministic: draws nothing at random, and codes each item by itself. idempotent:
    codes what it decoded to the same bytes; of deterministic ones.
    """

    name: str
    codec: Codec
    error: float
    digest: str = ""
    quantizer: Quantizer | None = None
    deterministic: bool = True
    idempotent: bool = True

    def encode(self, x: Tensor, seed: int = 0) -> bytes:
        """By a generator of that seed."""
        return self.codec.encode(x, torch.Generator().manual_seed(seed))

    def round_trip(self, x: Tensor, seed: int = 0) -> Tensor:
        """x as the other side has it."""
        return self.codec.decode(self.encode(x, seed), x.shape)


class CodecChecklist:
    """A test class to inherit: give it `cases`, and a name that pytest collects."""

    cases: ClassVar[Sequence[CodecCase]]

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Each check over the cases that it is for, and those of shapes over shapes."""
        name = metafunc.function.__name__
        chosen = [
            case
            for case in self.cases
            if (case.digest or "golden" not in name)
            and (case.codec.unbiased or "unbiased" not in name)
            and (case.deterministic or "deterministic" not in name)
            and ((case.deterministic and case.idempotent) or "idempotent" not in name)
        ]
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", chosen, ids=[case.name for case in chosen])
        if "shape" in metafunc.fixturenames:
            metafunc.parametrize("shape", SHAPES, ids=str)

    def test_round_trip_within_the_promised_error(self, case: CodecCase) -> None:
        back = case.round_trip(sample())
        assert back.dtype == torch.float32
        assert back.device.type == "cpu"
        assert (back - sample()).abs().max() <= case.error

    def test_training_equals_the_wire(self, case: CodecCase) -> None:
        quantizer = case.quantizer or ThroughCodec(WIDTH, WIDTH, case.codec)
        for mode in (True, False):
            quantized = quantizer.train(mode)(sample())
            levels = quantized.levels
            payload = case.encode(levels) if quantized.payload is None else quantized.payload
            assert torch.equal(case.codec.decode(payload, levels.shape), levels)

    def test_golden_bytes(self, case: CodecCase) -> None:
        assert hashlib.sha256(case.encode(sample())).hexdigest()[:16] == case.digest

    def test_configuration_survives_json(self, case: CodecCase) -> None:
        config = json.loads(json.dumps(case.codec.config()))
        assert codec_from_config(config) == case.codec
        assert codec_from_config(json.loads(canonical(config))) == case.codec

    def test_any_shape_within_the_stated_length(self, case: CodecCase, shape: tuple[int, ...]) -> None:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        payload = case.encode(x)
        most = case.codec.payload_bytes(shape)
        assert len(payload) == most if case.codec.fixed_length else len(payload) <= most
        assert case.codec.decode(payload, shape).shape == x.shape

    def test_another_length_is_refused(self, case: CodecCase, shape: tuple[int, ...]) -> None:
        payload = case.encode(torch.zeros(shape))
        for wrong in [payload + b"\0", *([payload[:-1]] if payload else [])]:
            with pytest.raises(CodecError, match="bytes"):
                case.codec.decode(wrong, shape)

    def test_a_lie_about_the_shape_is_refused_before_memory_is_taken(self, case: CodecCase) -> None:
        for lie in [(2**20, 2**20), (2**60, 2**60), (0, 2**62, 2**62), (-1, 0), (1, -1), (0,) * 9]:
            with pytest.raises(CodecError):
                case.codec.decode(b"", lie)

    def test_many_tokens_of_no_width_take_no_memory(self, case: CodecCase) -> None:
        assert case.codec.decode(b"", (2**40, 0)).shape == (2**40, 0)

    def test_any_bytes_are_numbers_or_refused(self, case: CodecCase) -> None:
        numbers = np.random.default_rng(0)
        for size in [(3,), (2, 9), (1, 40)] * 20:
            try:
                back = case.codec.decode(numbers.bytes(case.codec.payload_bytes(size)), size)
            except CodecError:
                continue
            assert back.shape == size
            assert torch.isfinite(back).all()

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_not_finite_is_refused_with_count_and_place(self, case: CodecCase, bad: float) -> None:
        x = sample()
        x[1, 2, 3] = bad
        with pytest.raises(NonFiniteError, match=r"1 of 120 .* \(1, 2, 3\)"):
            case.encode(x)

    def test_integers_are_refused(self, case: CodecCase) -> None:
        with pytest.raises(CodecError, match="floating-point"):
            case.encode(torch.zeros(3, dtype=torch.int64))

    def test_any_floating_dtype_and_layout(self, case: CodecCase) -> None:
        x = sample().bfloat16()
        assert case.encode(x) == case.encode(x.double()) == case.encode(x.float().mT.contiguous().mT)

    def test_what_is_coded_stays_as_it_was(self, case: CodecCase) -> None:
        x = sample()
        case.encode(x)
        assert torch.equal(x, sample())

    def test_chance_is_the_generators_alone(self, case: CodecCase) -> None:
        before = torch.get_rng_state()
        payload = case.encode(sample())
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        assert case.encode(sample()) == payload

    def test_questions_are_coded_for_the_same_decoder(self, case: CodecCase) -> None:
        payload = case.codec.settled().encode(sample(), torch.Generator().manual_seed(0))
        back = case.codec.settled().decode(payload, sample().shape)
        assert torch.equal(case.codec.decode(payload, sample().shape), back)

    def test_unbiased_as_it_says(self, case: CodecCase) -> None:
        x = sample()
        off = torch.stack([((case.round_trip(x, seed) - x).double() * x).sum() for seed in range(_DRAWS)])
        assert off.mean().abs() <= 6 * off.std() / _DRAWS**0.5 + 1e-6

    def test_deterministic_an_item_is_coded_alike_alone_and_in_a_batch(self, case: CodecCase) -> None:
        together = case.round_trip(sample(3))
        for item, alone in enumerate(sample(3)):
            assert torch.equal(case.round_trip(alone), together[item])

    def test_deterministic_draws_nothing(self, case: CodecCase) -> None:
        assert case.encode(sample(), 0) == case.encode(sample(), 1)

    def test_idempotent(self, case: CodecCase) -> None:
        payload = case.encode(sample())
        assert case.encode(case.codec.decode(payload, sample().shape)) == payload
