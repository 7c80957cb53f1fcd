"""What every codec must pass: a new one adds a case, with the digest of what it makes of `sample`."""

from typing import ClassVar

import torch

from bitseam.codecs import (
    Bf16,
    BlockwiseInt,
    Delta,
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
)
from bitseam.quant import RDFSQ, LearnedClipFSQ, Quantizer, RateFSQ, StepFSQ, TanhFSQ, TensorRDFSQ
from bitseam.testing import CodecCase, CodecChecklist, sample

WIDTH = 12


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


CASES = [
    CodecCase("fp32", Fp32(), 0, "b8d0b93bb333021e"),
    CodecCase("fp16", Fp16(), 2e-3, "d58590ca224fa568"),
    CodecCase("bf16", Bf16(), 1e-2, "684f35a22052e856"),
    CodecCase("uniform2", Uniform(2, 0.8), 1.8, "ee51314635248373", rd_fsq(2, 0.8)),
    CodecCase("uniform3", Uniform(3, 1.22), 1.3, "678352e2ebe897a6", rd_fsq(3, 1.22)),
    CodecCase("uniform4", Uniform(4, 1.49), 1.1, "60e21180cd293f18", rd_fsq(4, 1.49)),
    CodecCase("uniform6", Uniform(6, 2.5), 0.51, "3c685655ed8d8e9b", rd_fsq(6, 2.5)),
    CodecCase("uniform16", Uniform(16, 2.51), 0.17, "a007611da3e73cd1", rd_fsq(16, 2.51)),
    CodecCase("uniform300", Uniform(300, 2.6), 0.01, "f07de970e34ab984", rd_fsq(300, 2.6)),
    CodecCase("uniform65536", Uniform(65536, 2.6), 1e-4, "4c1059c6820432fa", rd_fsq(65536, 2.6)),
    CodecCase("entropy2", EntropyUniform(2, 0.8), 1.8, "b246a7fd36e2bf20", rd_fsq(2, 0.8)),
    CodecCase("entropy3", learned(EntropyUniform(3, 1.22, 5)), 1.3, "ba436b40172b2693", rd_fsq(3, 1.22)),
    CodecCase("entropy6", learned(EntropyUniform(6, 2.5, 1)), 0.51, "c715febd16830bce", rd_fsq(6, 2.5)),
    CodecCase("entropy256", learned(EntropyUniform(256, 2.6, 3)), 0.02, "0256654bdf0710b7", rd_fsq(256, 2.6)),
    CodecCase("contexts3", learned(EntropyUniform(4, 1.49, 2, contexts=3)), 1.1, "4a0fe589aed68beb", rd_fsq(4, 1.49)),
    CodecCase("contexts5", learned(EntropyUniform(9, 4.0, 4, contexts=5)), 0.51, "6a991699fdc43213", rate_fsq()),
    CodecCase("entropy-stochastic.1", EntropyStochastic(0.1), 0.16, "9241c0e8de134630", deterministic=False),
    CodecCase("entropy-stochastic2", EntropyStochastic(2), 3.1, "9d175a9a06f9501d", deterministic=False),
    CodecCase("entropy-stochastic1000", EntropyStochastic(1000), 1600, "803b78b23f6b665e", deterministic=False),
    CodecCase("tensor4", Uniform(4, 1.0), 1.6, "31b4ce7775100750", tensor_rd_fsq(4)),
    CodecCase("tanh5", Uniform(5, 1.5), 1.3, "86dd35d9b16de110", rd_fsq(5, 1.5, TanhFSQ)),
    CodecCase("learned-clip4", Uniform(4, 1.0), 1.6, "31b4ce7775100750", rd_fsq(4, 1.5, LearnedClipFSQ)),
    CodecCase("rate9", Uniform(9, 4.0), 0.51, "3284b663d60e8d2f", rate_fsq()),
    CodecCase("step5", Uniform(5, 2.0), 0.6, "f5f9f151001b75c3", step_fsq(5)),
    CodecCase("entropy-step4", learned(EntropyUniform(4, 1.5, 12)), 1.1, "dffff23206ceb9b6", step_fsq(4)),
    CodecCase("splitfc4", SplitFC(4), 2.3, "851113556639aa86", idempotent=False),
    CodecCase("splitfc16", SplitFC(16, 1000), 0.02, "55768e8a8da4e1ab", idempotent=False),
    CodecCase("one-bit", OneBit(), 5.1, "05e8843fc2ae4669", deterministic=False),
    CodecCase("one-bit-7", OneBit(7, "least-error"), 5.1, "c7ea4cd19da93eb4", deterministic=False),
    CodecCase("stochastic2", Stochastic(2), 5.1, "05e8843fc2ae4669", deterministic=False),
    CodecCase("stochastic3", Stochastic(3, 7), 2.6, "5a004c42137e4cb3", deterministic=False),
    CodecCase("stochastic4", Stochastic(4, "token"), 1.7, "f5acdf9840708732", deterministic=False),
    CodecCase("stochastic256", Stochastic(256, 1000), 0.02, "7ec947d8835546ac", deterministic=False),
    CodecCase("int2", BlockwiseInt(2), 1.26, "625d63f8c51475bc"),
    CodecCase("int4", BlockwiseInt(4, 5), 0.19, "5a164d572a6407f8"),
    CodecCase("int8", BlockwiseInt(8, 64), 0.02, "934de226c51c8b60"),
    CodecCase("int3-stochastic", BlockwiseInt(3, 5, "stochastic"), 0.85, "854f21bb59e11927", deterministic=False),
    CodecCase("int8-stochastic", BlockwiseInt(8, "token", "stochastic"), 0.02, "ea51f0978b84127c", deterministic=False),
    CodecCase("e4m3", Fp8("e4m3", 5), 0.16, "4bdc17e2ef852720"),
    CodecCase("e5m2", Fp8("e5m2"), 0.32, "cb3283c89b0595fc"),
    CodecCase("nf2", NormalFloat(2), 1.26, "f357d4a279bd3918"),
    CodecCase("nf3", NormalFloat(3, 5), 0.6, "be1b3a9cc173e693"),
    CodecCase("nf4", NormalFloat(4, 5), 0.4, "4acb0b5065add9f8"),
    CodecCase("nf8", NormalFloat(8, "token"), 0.2, "b120fad966425b50"),
    CodecCase("top2", TopK(0.15), 2.5, "289dca249bcce208"),
    CodecCase("top6-int4", TopK(0.5, 4), 2.5, "1b90d2c67e1151be"),
    CodecCase("top12-sign", TopK(1, 1), 2.5, "2cbfc475e2e55e00"),
    CodecCase("delta", Delta("fp16", {"id": "stochastic", "levels": 4}, 10**6), 2e-3, "d58590ca224fa568"),
    CodecCase("randomized-top3", RandomizedTopK(0.25, 8, 0.3), 2.51, "202a93527a80b707", deterministic=False),
]


class TestCodecs(CodecChecklist):
    cases: ClassVar = CASES
