"""What every codec must pass. A new codec adds a Case, with the digest of what it makes of `sample`."""

import hashlib
import json
from dataclasses import dataclass

import pytest
import torch

from bitseam.codecs import Bf16, Codec, EntropyUniform, Fp16, Fp32, Stochastic, Uniform, canonical, codec_from_config
from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import RDFSQ, Float, Quantizer, TensorRDFSQ

WIDTH = 12


def sample(batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Features (batch, 5, WIDTH), the same on every machine."""
    count = batch * 5 * WIDTH
    return (torch.arange(count).mul(7919).add(seed).remainder(1009) / 504 - 1).mul(2.5).reshape(batch, 5, WIDTH)


def rd_fsq(levels: int, clip: float) -> Quantizer:
    quantizer = RDFSQ(WIDTH, WIDTH, levels, clip)
    quantizer.calibrate(sample(4))
    return quantizer


def tensor_rd_fsq(levels: int) -> Quantizer:
    torch.manual_seed(0)
    return TensorRDFSQ(WIDTH, WIDTH, levels)


def learned(codec: EntropyUniform) -> EntropyUniform:
    return codec.learned(codec.counts(sample()))


@dataclass(frozen=True)
class Case:
    name: str
    codec: Codec
    digest: str  # first 16 digits of the SHA-256 of encode(sample()), generator seeded with 0
    error: float  # the most that a value of `sample` may lose
    quantizer: Quantizer | None = None  # what trains with it: its levels cross unchanged
    deterministic: bool = True

    def encode(self, x: torch.Tensor) -> bytes:
        return self.codec.encode(x, torch.Generator().manual_seed(0))


CASES = [
    Case("fp32", Fp32(), "b8d0b93bb333021e", 0, Float(WIDTH, torch.float32)),
    Case("fp16", Fp16(), "d58590ca224fa568", 2e-3, Float(WIDTH, torch.float16)),
    Case("bf16", Bf16(), "684f35a22052e856", 1e-2, Float(WIDTH, torch.bfloat16)),
    Case("uniform2", Uniform(2, 0.8), "ee51314635248373", 1.8, rd_fsq(2, 0.8)),
    Case("uniform3", Uniform(3, 1.22), "678352e2ebe897a6", 1.3, rd_fsq(3, 1.22)),
    Case("uniform4", Uniform(4, 1.49), "60e21180cd293f18", 1.1, rd_fsq(4, 1.49)),
    Case("uniform6", Uniform(6, 2.5), "3c685655ed8d8e9b", 0.51, rd_fsq(6, 2.5)),
    Case("uniform16", Uniform(16, 2.51), "a007611da3e73cd1", 0.17, rd_fsq(16, 2.51)),
    Case("uniform300", Uniform(300, 2.6), "f07de970e34ab984", 0.01, rd_fsq(300, 2.6)),
    Case("uniform65536", Uniform(65536, 2.6), "4c1059c6820432fa", 1e-4, rd_fsq(65536, 2.6)),
    Case("entropy2", EntropyUniform(2, 0.8), "b246a7fd36e2bf20", 1.8, rd_fsq(2, 0.8)),
    Case("entropy3", learned(EntropyUniform(3, 1.22, 5)), "ba436b40172b2693", 1.3, rd_fsq(3, 1.22)),
    Case("entropy6", learned(EntropyUniform(6, 2.5, 1)), "c715febd16830bce", 0.51, rd_fsq(6, 2.5)),
    Case("entropy256", learned(EntropyUniform(256, 2.6, 3)), "0256654bdf0710b7", 0.02, rd_fsq(256, 2.6)),
    Case("tensor4", Uniform(4, 1.0), "31b4ce7775100750", 1.6, tensor_rd_fsq(4)),
    Case("stochastic2", Stochastic(2), "05e8843fc2ae4669", 5.1, deterministic=False),
    Case("stochastic3", Stochastic(3, 7), "5a004c42137e4cb3", 2.6, deterministic=False),
    Case("stochastic4", Stochastic(4, "token"), "f5acdf9840708732", 1.7, deterministic=False),
    Case("stochastic256", Stochastic(256, 1000), "7ec947d8835546ac", 0.02, deterministic=False),
]


def over(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


every = over(CASES)
trained = over([case for case in CASES if case.quantizer])
deterministic = over([case for case in CASES if case.deterministic])
SHAPES = [(), (0,), (1,), (0, 7), (3, 0), (1, 1), (3, 5, 7), (2, 1, 41), (1025,)]


@every
def test_round_trip_within_the_promised_error(case: Case) -> None:
    x = sample()
    back = case.codec.decode(case.encode(x), x.shape)
    assert back.dtype == torch.float32
    assert back.device.type == "cpu"
    assert (back - x).abs().max() <= case.error


@trained
def test_training_equals_the_wire(case: Case) -> None:
    assert case.quantizer
    for mode in (True, False):
        levels = case.quantizer.train(mode)(sample()).levels
        assert torch.equal(case.codec.decode(case.encode(levels), levels.shape), levels)


@every
def test_golden_bytes(case: Case) -> None:
    assert hashlib.sha256(case.encode(sample())).hexdigest()[:16] == case.digest


@every
def test_configuration_survives_json(case: Case) -> None:
    config = json.loads(json.dumps(case.codec.config()))
    assert codec_from_config(config) == case.codec
    assert codec_from_config(json.loads(canonical(config))) == case.codec


@every
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_within_the_stated_length(case: Case, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    payload = case.encode(x)
    most = case.codec.payload_bytes(shape)
    assert len(payload) == most if case.codec.fixed_length else len(payload) <= most
    assert case.codec.decode(payload, shape).shape == x.shape


@every
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_another_length_is_refused(case: Case, shape: tuple[int, ...]) -> None:
    payload = case.encode(torch.zeros(shape))
    for wrong in [payload + b"\0", *([payload[:-1]] if payload else [])]:
        with pytest.raises(CodecError, match="bytes"):
            case.codec.decode(wrong, shape)


@every
def test_a_lie_about_the_shape_is_refused_before_memory_is_taken(case: Case) -> None:
    for shape in [(2**20, 2**20), (2**60, 2**60), (0, 2**62, 2**62), (-1, 0), (1, -1), (0,) * 9]:
        with pytest.raises(CodecError):
            case.codec.decode(b"", shape)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_is_refused_with_count_and_place(case: Case, bad: float) -> None:
    x = sample()
    x[1, 2, 3] = bad
    with pytest.raises(NonFiniteError, match=r"1 of 120 .* \(1, 2, 3\)"):
        case.encode(x)


@every
def test_integers_are_refused(case: Case) -> None:
    with pytest.raises(CodecError, match="floating-point"):
        case.encode(torch.zeros(3, dtype=torch.int64))


@every
def test_any_floating_dtype_and_layout(case: Case) -> None:
    x = sample().bfloat16()
    assert case.encode(x) == case.encode(x.double()) == case.encode(x.float().mT.contiguous().mT)


@deterministic
def test_an_item_is_coded_alike_alone_and_in_a_batch(case: Case) -> None:
    x = sample(3)
    together = case.codec.decode(case.encode(x), x.shape)
    for item in range(3):
        alone = case.codec.decode(case.encode(x[item]), x[item].shape)
        assert torch.equal(alone, together[item])


@deterministic
def test_coding_what_was_decoded_changes_nothing(case: Case) -> None:
    payload = case.encode(sample())
    assert case.encode(case.codec.decode(payload, sample().shape)) == payload
