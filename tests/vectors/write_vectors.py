"""Writes vectors/*.json: what docs/payloads.md and docs/protocol.md say, as numbers and bytes (`make vectors`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import frame_cases
import numpy as np
import session_case
import text_cases
import tokenizer_cases
import vector_cases

from bitseam.codecs import canonical
from bitseam.codecs.entropy.stochastic import _tables
from bitseam.codecs.normal_float import normal_values
from bitseam.codecs.packing import group, pack
from bitseam.codecs.split_fc import MENU

FOLDER = Path(__file__).parents[2] / "vectors"
LEVELS = (2, 3, 4, 5, 6, 8, 10, 16, 100, 256, 300, 4096, 65536)
PADDED = ((2, 7, "80"), (4, 7, "00c0"), (16, 3, "1011"), (5, 3, "7d"), (3, 40, "ff" * 8), (8, 3, "0002"))
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"id": "fp16"},
    {"levels": 4, "id": "uniform", "clip": 2.0},
    {"id": "uniform", "levels": 3, "clip": 1e-6},
    {"id": "uniform", "levels": 3, "clip": 123456.789},
    {"id": "entropy-uniform", "levels": 4, "clip": 1.49},
    {"id": "entropy-uniform", "levels": 2, "clip": 0.8, "groups": 1, "tables": [[65535, 1]]},
    {"id": "stochastic", "levels": 4},
    {"id": "stochastic", "levels": 4, "block": 64},
    {"id": "entropy-stochastic"},
    {"id": "blockwise-int", "bits": 4},
    {"id": "nf", "bits": 4},
    {"id": "fp8", "format": "e4m3"},
    {"id": "top-k", "share": 1},
    {"id": "randomized-top-k", "share": 0.1},
    {"id": "one-bit"},
    {"id": "splitfc", "bits": 4},
    {"id": "delta", "first": "fp16", "inner": {"id": "nf", "bits": 4}, "capacity": 1000},
)
WRONG: tuple[dict[str, Any], ...] = (
    {"id": "zip"},
    {"levels": 4, "clip": 1.0},
    {"id": "fp16", "levels": 4},
    {"id": "uniform", "levels": 4},
    {"id": "uniform", "levels": 4.0, "clip": 1.0},
    {"id": "uniform", "levels": True, "clip": 1.0},
    {"id": "uniform", "levels": 65537, "clip": 1.0},
    {"id": "stochastic", "levels": 4, "block": "row"},
    {"id": "entropy-uniform", "levels": 2, "clip": 1.0, "groups": 1, "tables": [[65536, 0]]},
    {"id": "entropy-uniform", "levels": 2, "clip": 1.0, "groups": 1, "tables": [[65535, 2]]},
)


def documents() -> dict[str, Any]:
    """File name, without .json -> what it holds."""
    return {
        "frames": {"vectors": frame_cases.vectors(), "pieces": frame_cases.pieces()},
        "configurations": _configurations(),
        "packing": _packing(),
        "tables": _tables_of_codecs(),
        "fingerprints": {"vectors": tokenizer_cases.vectors()},
        "symbols": {"vectors": text_cases.vectors()},
        **{name: {"vectors": vector_cases.of_codec(name)} for name in vector_cases.CASES},
    }


def text_of(document: dict[str, Any]) -> str:
    """JSON with a vector a line."""
    lists = []
    for key, rows in document.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
        lists.append(f"{json.dumps(key)}: [\n{lines}\n]")
    return "{" + ",\n".join(lists) + "}\n"


def _configurations() -> dict[str, Any]:
    return {
        "vectors": [
            *({"given": given, "text": canonical(given)} for given in CONFIGURATIONS),
            *({"given": given, "refused": True} for given in WRONG),
        ]
    }


def _packing() -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for levels in LEVELS:
        for count in sorted({1, 3, group(levels), group(levels) + 2}):
            symbols = np.arange(count) * 7919 % levels if count > 1 else np.array([levels - 1])
            found.append({"levels": levels, "symbols": symbols.tolist(), "payload": pack(symbols, levels).hex()})
    found += [{"levels": levels, "count": count, "payload": wrong, "refused": True} for levels, count, wrong in PADDED]
    return {"vectors": found}


def _tables_of_codecs() -> dict[str, Any]:
    """Numbers that codecs share, and that a formula gives: those of `nf`, `entropy-stochastic` and `splitfc`."""
    return {
        "nf": [{"bits": bits, "levels": normal_values(bits).tolist()} for bits in range(2, 9)],
        "entropy-stochastic": [{"class": c, "frequencies": row} for c, row in enumerate(_tables(), 1)],
        "splitfc": [{"item": item, "levels": levels} for item, levels in enumerate(MENU)],
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    session = {"session": {"frames": session_case.rows()}}
    for name, document in (documents() | session).items():
        (FOLDER / f"{name}.json").write_text(text_of(document))


if __name__ == "__main__":
    main()
