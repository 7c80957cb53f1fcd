"""What every codec must pass. A new codec adds a Case, with the digest of what it makes of `sample`."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bitseam.codecs import (
    Bf16,
    BlockwiseInt,
    Codec,
    EntropyStochastic,
    EntropyUniform,
    Fp8,
    Fp16,
    Fp32,
    NormalFloat,
    OneBit,
    RandomizedTopK,
    SplitFC,
    Stochastic,
    TopK,
    Uniform,
    canonical,
    codec_from_config,
)
from bitseam.errors import CodecError, NonFiniteError
from bitseam.quant import RDFSQ, Float, LearnedClipFSQ, Quantizer, RateFSQ, StepFSQ, TanhFSQ, TensorRDFSQ

WIDTH = 12


def sample(batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Features (batch, 5, WIDTH), the same on every machine."""
    count = batch * 5 * WIDTH
    return (torch.arange(count).mul(7919).add(seed).remainder(1009) / 504 - 1).mul(2.5).reshape(batch, 5, WIDTH)


def rd_fsq(levels: int, clip: float, kind: type[RDFSQ] = RDFSQ) -> Quantizer:
    quantizer = kind(WIDTH, WIDTH, levels, clip)
    quantizer.calibrate(sample(4))
    return quantizer


def step_fsq(levels: int) -> Quantizer:
    quantizer = StepFSQ(WIDTH, WIDTH, levels, (0.0, 0.3, 2.5, *[0.7] * (WIDTH - 3)))
    quantizer.calibrate(sample(4))
    return quantizer


def rate_fsq() -> Quantizer:
    quantizer = RateFSQ(WIDTH, WIDTH, 9, 4.0)
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
    idempotent: bool = True  # unless drawn at random, or scaled by what decoding may move

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
    Case("contexts3", learned(EntropyUniform(4, 1.49, 2, contexts=3)), "4a0fe589aed68beb", 1.1, rd_fsq(4, 1.49)),
    Case("contexts5", learned(EntropyUniform(9, 4.0, 4, contexts=5)), "6a991699fdc43213", 0.51, rate_fsq()),
    Case("entropy-stochastic.1", EntropyStochastic(0.1), "9241c0e8de134630", 0.16, deterministic=False),
    Case("entropy-stochastic2", EntropyStochastic(2), "9d175a9a06f9501d", 3.1, deterministic=False),
    Case("entropy-stochastic1000", EntropyStochastic(1000), "803b78b23f6b665e", 1600, deterministic=False),
    Case("tensor4", Uniform(4, 1.0), "31b4ce7775100750", 1.6, tensor_rd_fsq(4)),
    Case("tanh5", Uniform(5, 1.5), "86dd35d9b16de110", 1.3, rd_fsq(5, 1.5, TanhFSQ)),
    Case("learned-clip4", Uniform(4, 1.0), "31b4ce7775100750", 1.6, rd_fsq(4, 1.5, LearnedClipFSQ)),
    Case("rate9", Uniform(9, 4.0), "3284b663d60e8d2f", 0.51, rate_fsq()),
    Case("step5", Uniform(5, 2.0), "f5f9f151001b75c3", 0.6, step_fsq(5)),
    Case("entropy-step4", learned(EntropyUniform(4, 1.5, 12)), "dffff23206ceb9b6", 1.1, step_fsq(4)),
    Case("splitfc4", SplitFC(4), "851113556639aa86", 2.3, idempotent=False),
    Case("splitfc16", SplitFC(16, 1000), "55768e8a8da4e1ab", 0.02, idempotent=False),
    Case("one-bit", OneBit(), "05e8843fc2ae4669", 5.1, deterministic=False),
    Case("one-bit-7", OneBit(7, "least-error"), "c7ea4cd19da93eb4", 5.1, deterministic=False),
    Case("stochastic2", Stochastic(2), "05e8843fc2ae4669", 5.1, deterministic=False),
    Case("stochastic3", Stochastic(3, 7), "5a004c42137e4cb3", 2.6, deterministic=False),
    Case("stochastic4", Stochastic(4, "token"), "f5acdf9840708732", 1.7, deterministic=False),
    Case("stochastic256", Stochastic(256, 1000), "7ec947d8835546ac", 0.02, deterministic=False),
    Case("int2", BlockwiseInt(2), "625d63f8c51475bc", 1.26),
    Case("int4", BlockwiseInt(4, 5), "5a164d572a6407f8", 0.19),
    Case("int8", BlockwiseInt(8, 64), "934de226c51c8b60", 0.02),
    Case("int3-stochastic", BlockwiseInt(3, 5, "stochastic"), "854f21bb59e11927", 0.85, deterministic=False),
    Case("int8-stochastic", BlockwiseInt(8, "token", "stochastic"), "ea51f0978b84127c", 0.02, deterministic=False),
    Case("e4m3", Fp8("e4m3", 5), "4bdc17e2ef852720", 0.16),
    Case("e5m2", Fp8("e5m2"), "cb3283c89b0595fc", 0.32),
    Case("nf2", NormalFloat(2), "f357d4a279bd3918", 1.26),
    Case("nf3", NormalFloat(3, 5), "be1b3a9cc173e693", 0.6),
    Case("nf4", NormalFloat(4, 5), "4acb0b5065add9f8", 0.4),
    Case("nf8", NormalFloat(8, "token"), "b120fad966425b50", 0.2),
    Case("top2", TopK(0.15), "289dca249bcce208", 2.5),
    Case("top6-int4", TopK(0.5, 4), "1b90d2c67e1151be", 2.5),
    Case("top12-sign", TopK(1, 1), "2cbfc475e2e55e00", 2.5),
    Case("randomized-top3", RandomizedTopK(0.25, 8, 0.3), "202a93527a80b707", 2.51, deterministic=False),
]


def over(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


every = over(CASES)
trained = over([case for case in CASES if case.quantizer])
deterministic = over([case for case in CASES if case.deterministic])
idempotent = over([case for case in CASES if case.deterministic and case.idempotent])
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
def test_many_tokens_of_no_width_take_no_memory(case: Case) -> None:
    assert case.codec.decode(b"", (2**40, 0)).shape == (2**40, 0)


@every
def test_any_bytes_are_numbers_or_refused(case: Case) -> None:
    numbers = np.random.default_rng(0)
    for shape in [(3,), (2, 9), (1, 40)] * 20:
        try:
            back = case.codec.decode(numbers.bytes(case.codec.payload_bytes(shape)), shape)
        except CodecError:
            continue
        assert back.shape == shape
        assert torch.isfinite(back).all()


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


@idempotent
def test_coding_what_was_decoded_changes_nothing(case: Case) -> None:
    payload = case.encode(sample())
    assert case.encode(case.codec.decode(payload, sample().shape)) == payload
