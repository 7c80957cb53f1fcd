"""Vectors of codecs: what each makes of given numbers, and bytes that each must refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vector_numbers import LONG, SAMPLE, sample, told

from bitseam.codecs import (
    Bf16,
    BlockwiseInt,
    Codec,
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
    canonical,
)
from bitseam.codecs.normal_float import normal_values


@dataclass(frozen=True)
class Case:
    """Accepted: numbers and what the codec makes of them. refused: what is done to the payload, and its bytes.

    exact: an encoder has to make these bytes of the input; others draw at random, or are free in what they choose.
    """

    name: str
    codec: Codec
    x: Tensor
    exact: bool = True
    formula: dict[str, int] | None = None
    refused: dict[str, str] = field(default_factory=dict)

    def vectors(self) -> Iterator[dict[str, Any]]:
        shape = list(self.x.shape)
        head = {"codec": canonical(self.codec.config()), "shape": shape}
        payload = self.codec.encode(self.x, torch.Generator().manual_seed(0))
        given = {"input": self.formula or self.x.flatten().tolist()} if self.exact else {}
        decoded = told(self.codec.decode(payload, shape))
        yield {"name": self.name, **head, **given, "payload": payload.hex(), "decoded": decoded}
        cut = {f"{self.name}: a byte too long": payload.hex() + "00"}
        if payload:
            cut[f"{self.name}: a byte too short"] = payload[:-1].hex()
        for why, wrong in {**(cut if len(payload) <= LONG else {}), **self.refused}.items():
            yield {"name": why, **head, "payload": wrong, "refused": True}


def formula(*shape: int, **changes: int) -> dict[str, Any]:
    """Numbers by formula, for a Case."""
    return {"x": sample(*shape, **changes), "formula": {**SAMPLE, **changes}}


def learned(codec: EntropyUniform, x: Tensor) -> EntropyUniform:
    return codec.learned(codec.counts(x))


LANES = 2**14 + 116  # symbols of two lanes
HALF = EntropyUniform(2, 1.0, 1)

CASES: dict[str, list[Case]] = {
    "fp32": [
        Case("some", Fp32(), torch.tensor([0.0, 1.0, -2.5, 2**-149, 3.4028234663852886e38]), refused={
            "infinity": "0000807f" + "00" * 16, "not a number": "0000c07f" + "00" * 16}),
    ],
    "fp16": [
        Case("some", Fp16(), torch.tensor([0.0, 1.0, -2.5, 2**-24, 65504.0, 1 + 2**-11]), refused={
            "infinity": "007c" + "00" * 10, "not a number": "017e" + "00" * 10}),
    ],
    "bf16": [
        Case("some", Bf16(), torch.tensor([0.0, 1.0, -2.5, 2**-133, 1 + 2**-8, 1 + 3 * 2**-8]), refused={
            "infinity": "807f" + "00" * 10, "not a number": "c07f" + "00" * 10}),
    ],
    "uniform": [
        Case("index 0 is -clip", Uniform(2, 1.0), torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0]),
             refused={"padding after the last symbol is not zero": "36"}),
        *(Case(f"{levels} levels", Uniform(levels, clip), sample(2, 3, 15)) for levels, clip in
          ((2, 0.8), (3, 1.22), (4, 1.49), (5, 1.7), (8, 2.05), (16, 2.51))),
        *(Case(f"{levels} levels", Uniform(levels, clip), sample(3, 7)) for levels, clip in ((300, 2.6), (65536, 3.0))),
        Case("a value midway takes the upper level", Uniform(4, 1.5), torch.tensor([-1.0, 0.0, 1.0, -9.0, 9.0])),
        Case("a word of 40 ternary symbols", Uniform(3, 1.0), sample(40),
             refused={"a symbol over the last level": "ff" * 8}),
        Case("a tail of three symbols of five levels", Uniform(5, 1.0), torch.tensor([-1.0, 0.5, 1.0]),
             refused={"more than the digits can make": "7d"}),
    ],
    "stochastic": [
        Case("a token a block", Stochastic(4), sample(2, 3, 5), exact=False, refused={
            "a scale that is infinite": "807f" + "00" * 18, "a scale that is negative": "80bf" + "00" * 18,
            "a scale that is not a number": "c07f" + "00" * 18}),
        Case("two levels", Stochastic(2, 8), sample(4, 5), exact=False),
        Case("blocks over the flattened tensor, the last shorter", Stochastic(3, 7), sample(2, 5, 3), exact=False),
        Case("a block longer than the tensor", Stochastic(256, 1000), sample(3, 4), exact=False),
        Case("zeros", Stochastic(4, 4), torch.zeros(2, 6), exact=False),
    ],
    "one-bit": [
        Case("the largest", OneBit(), sample(2, 3, 5), exact=False,
             refused={"a scale that is infinite": "807f" + "00" * 14}),
        Case("the least error, blocks of seven", OneBit(7, "least-error"), sample(2, 3, 5), exact=False),
    ],
    "blockwise-int": [
        Case("two bits", BlockwiseInt(2), sample(2, 3, 5), refused={"a scale that is infinite": "807f" + "00" * 16}),
        Case("blocks end with their token", BlockwiseInt(4, 5), sample(2, 2, 7)),
        Case("eight bits", BlockwiseInt(8, 64), sample(3, 9)),
        Case("at random", BlockwiseInt(3, 4, "stochastic"), sample(3, 9), exact=False),
    ],
    "nf": [
        *(Case(f"each level of {b} bits", NormalFloat(b, "token"), normal_values(b)[None]) for b in range(2, 9)),
        Case("blocks end with their token", NormalFloat(4, 5), sample(2, 2, 7), refused={
            "the least scale is over the largest": "8040" + "803f" + "8040803f" * 3 + "00" * 8 + "00" * 14,
            "a scale that is infinite": "803f807f" * 4 + "00" * 8 + "00" * 14}),
        Case("zeros", NormalFloat(3, 4), torch.zeros(2, 6)),
    ],
    "fp8": [
        Case("e4m3", Fp8("e4m3", 5), sample(2, 2, 7), refused={"not a number": "803f" * 8 + "7f" + "00" * 27}),
        Case("e5m2", Fp8("e5m2"), sample(2, 3, 5), refused={"infinity": "803f" * 6 + "7c" + "00" * 29}),
    ],
    "top-k": [
        Case("a bitmap, half precision", TopK(0.5), sample(2, 3, 8), refused={
            "five positions where four are due": "1f" + "0f" * 5 + "0000" * 24,
            "infinity": "0f" * 6 + "007c" + "0000" * 23}),
        Case("Elias-Fano, a token", TopK(0.05, 4), sample(1, 100), refused={
            "a position twice": "1f00" + "336507" + "803f" + "000000",
            "a position over the last": "0f04" + "43650f" + "803f" + "000000",
            "padding that is not zero": "1f08" + "436507" + "803f" + "000000",
            "a scale that is negative": "1f00" + "436507" + "80bf" + "000000"}),
        Case("Elias-Fano, four bits", TopK(0.05, 4), sample(3, 100)),
        Case("all, the sign alone", TopK(1, 1), sample(2, 5)),
        Case("one of one hundred", TopK(0.001, 8), sample(2, 100)),
    ],
    "randomized-top-k": [
        Case("drawn", RandomizedTopK(0.25, 8, 0.3), sample(2, 3, 12), exact=False),
    ],
    "splitfc": [
        Case("four bits", SplitFC(4), sample(2, 5, 12), exact=False, refused={
            "ends out of order": "00004040" + "0000803f" + "00" * 22 + "00" * 30,
            "an end that is infinite": "00000000" + "0000807f" + "00" * 22 + "00" * 30,
            "padding that is not zero": "00" * 59 + "01"}),
        Case("ten levels an end", SplitFC(2.5, 10), sample(2, 7, 12), exact=False),
        Case("one value", SplitFC(8), torch.tensor([1.5]), exact=False),
    ],
    "entropy-uniform": [
        Case("no symbol", HALF, torch.zeros(0, 3)),
        Case("equal frequencies", EntropyUniform(3, 1.22, 5), sample(2, 5, 9)),
        Case("a table a group", learned(EntropyUniform(4, 1.49, 2), sample(40, 5)), sample(2, 5, 5, add=100)),
        Case("one lane without words", EntropyUniform(2, 1.0, 1, ((65535, 1),)), -torch.ones(9), refused={
            "a lane that ends in a zero word": "00000000", "a word that is no symbols": "01000000"}),
        Case("256 levels", EntropyUniform(256, 2.6, 3), sample(3, 20)),
        Case("two lanes", learned(EntropyUniform(4, 0.8, 3), sample(LANES // 11, 11)),
             **formula(LANES // 11, 11)),
        Case("9 tokens in rows of 3, five contexts", learned(EntropyUniform(9, 4.0, 2, contexts=5), sample(4, 9, 6)),
             sample(2, 9, 6, add=50)),
        Case("7 tokens in one row, three contexts", learned(EntropyUniform(4, 1.49, 2, contexts=3), sample(4, 7, 6)),
             sample(2, 7, 6, add=50)),
        Case("contexts where the tensor has two dimensions", EntropyUniform(4, 1.49, 2, contexts=3), sample(7, 6)),
        Case("contexts over two lanes", learned(EntropyUniform(3, 1.22, 4, contexts=3), sample(2, 9, LANES // 18)),
             **formula(2, 9, LANES // 18)),
    ],
    "entropy-stochastic": [
        Case("twelve tokens", EntropyStochastic(1), sample(12, 10) * torch.logspace(-4, 4, 12, 2)[:, None], exact=False,
             refused={"bytes after zeros": "000000",
                      "a step that is infinite": "807f", "a step that is negative": "80bf",
                      "classes longer than the payload": "803f" + "00" * 8 + "ff000000" + "00" * 20}),
        Case("a coarse step", EntropyStochastic(1000), sample(3, 7), exact=False),
        Case("a fine step", EntropyStochastic(0.05), sample(3, 7), exact=False),
        Case("zeros", EntropyStochastic(2), torch.zeros(3, 7), exact=False),
        Case("two lanes", EntropyStochastic(4), sample(LANES // 60, 60), exact=False),
    ],
    "delta": [
        Case("by itself", Delta("fp16", {"id": "nf", "bits": 4}, 1000), sample(2, 2, 6)),
    ],
}  # fmt: skip


def of_codec(name: str) -> list[dict[str, Any]]:
    """All vectors of a codec."""
    found = [vector for case in CASES[name] for vector in case.vectors()]
    head = {"codec": canonical(CASES[name][0].codec.config()), "shape": [2]}
    if "tables" in head["codec"]:
        found += _lanes()
    found += [
        {"name": f"input: {why}", **head, "input": {"float32": "0000803f" + value}, "refused": True}
        for why, value in (("not a number", "0000c07f"), ("infinity", "0000807f"))
    ]
    if name == "fp16":
        found += [{"name": "input: 70000 is over the largest", **head, "input": [1.0, 70000.0], "refused": True}]
    return found


def _lanes() -> list[dict[str, Any]]:
    """Streams of two lanes whose lengths lie."""
    whole = HALF.encode(sample(LANES))
    first = int.from_bytes(whole[:2], "little")
    head = {"codec": canonical(HALF.config()), "shape": [LANES]}
    return [
        {"name": why, **head, "payload": (length.to_bytes(2, "little") + whole[2:]).hex(), "refused": True}
        for why, length in (("a lane longer than the payload", 65535), ("a word of one lane in the other", first - 1))
    ]
