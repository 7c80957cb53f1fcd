"""Vectors of texts: batches, the symbols that they cross as, and symbols that make no batch."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from bitseam.text.symbols import DICTIONARY, TextBatch, deflate, dictionary_of, read_dictionary, text_message

# Rows of a batch: image, ids, how many of them stand before the image, which of them are parts of answers.
Row = tuple[int, list[int], int, list[int]]
ONE: list[Row] = [(0, [1, 17, 250, 2], 1, [2, 3])]
MORE: list[Row] = [*ONE, (0, [1, 18, 250, 2], 1, [2, 3]), (1, [1, 17, 9, 11, 2], 2, [1, 2, 4])]
ANSWERS_MEET: list[Row] = [(0, [7, 8], 1, [1]), (0, [9, 4], 1, [0, 1])]  # the second opens with an answer, anew
AT_THE_END: list[Row] = [(0, [1, 17, 250], 3, []), (1, [], 0, [])]
BATCHES: list[tuple[str, list[Row], int, bool, list[Row] | None]] = [
    ("a sequence", ONE, 32000, False, None),
    ("symbols of four bytes", MORE, 70000, False, None),
    ("images, and sequences that share one", MORE, 32000, False, None),
    ("a dictionary", MORE, 32000, False, ONE),
    ("prompts that cross as codes", MORE, 32000, True, None),
    ("prompts that cross as codes, a dictionary", MORE, 32000, True, ONE),
    ("each sequence begins outside answers", ANSWERS_MEET, 32000, False, None),
    ("the image behind the last token, an empty sequence", AT_THE_END, 32000, False, None),
    ("the largest vocabulary of two bytes", [(0, [65530], 0, [0])], 65531, False, None),
]
# Symbols for one sequence of two tokens, of a vocabulary of nine.
BROKEN: list[tuple[str, list[int], bool]] = [
    ("no symbols", [], False),
    ("a further sequence is the first", [1, 6, 2, 7], False),
    ("a token before the first sequence", [6, 0, 2, 7], False),
    ("two sequences where one was told", [0, 2, 6, 0, 2, 7], False),
    ("three tokens where two were told", [0, 2, 6, 7, 7], False),
    ("no image", [0, 6, 7], False),
    ("two images in a sequence", [0, 2, 2, 6, 7], False),
    ("a token outside the vocabulary", [0, 2, 6, 14], False),
    ("a hidden token where prompts cross as ids", [0, 2, 6, 4], False),
    ("an id of a prompt that crosses as codes", [0, 2, 6, 4], True),
    ("a hidden token of an answer", [0, 2, 4, 3, 4], True),
    ("answers that begin behind the last token", [0, 2, 6, 7, 3], False),
    ("answers that begin before the image's mark", [0, 3, 2, 6, 7], False),
    ("answers that begin and end at once", [0, 2, 6, 3, 3, 7], False),
]


def batch_of(rows: Iterable[Row]) -> TextBatch:
    rows = list(rows)
    return TextBatch(
        ids=torch.tensor([i for _, ids, _, _ in rows for i in ids], dtype=torch.int64),
        lengths=torch.tensor([len(ids) for _, ids, _, _ in rows]),
        image_at=torch.tensor([at for _, _, at, _ in rows]),
        image=torch.tensor([image for image, _, _, _ in rows]),
        answers=torch.tensor([i in answers for _, ids, _, answers in rows for i in range(len(ids))], dtype=torch.bool),
    )


def vectors() -> list[dict[str, Any]]:
    found = [_accepted(*each) for each in BATCHES]
    told = {"vocabulary": 9, "sequences": 1, "tokens": 2}
    for name, symbols, codes in BROKEN:
        raw = np.array(symbols, "<u2").tobytes()
        found.append(
            {"name": name, **told, "codes": codes, "symbols": deflate(raw).hex(), "raw": symbols, "refused": True}
        )
    whole = deflate(np.array([0, 2, 6, 7], "<u2").tobytes())
    for name, stream in (
        ("cut off", whole[:-1]),
        ("a byte behind the stream", whole + b"\0"),
        ("not deflate", b"\xff" * 20),
        ("half a symbol", deflate(bytes.fromhex("00000200060007"))),
        ("more than two symbols a sequence and a token", deflate(bytes(2**20))),
    ):
        found.append({"name": name, **told, "codes": False, "symbols": stream.hex(), "refused": True})
    return found


def _accepted(name: str, rows: list[Row], vocabulary: int, codes: bool, past: list[Row] | None) -> dict[str, Any]:
    batch = batch_of(rows)
    dictionary = deflate(dictionary_of(batch_of(past), vocabulary, codes)) if past else b""
    known = whole_dictionary(dictionary)
    message = text_message(batch, vocabulary, known, codes)
    raw = text_message(batch, vocabulary, b"", codes)
    told = {"vocabulary": vocabulary, "sequences": message.sequences, "tokens": message.tokens, "codes": codes}
    return {
        "name": name,
        **told,
        **({"dictionary": dictionary.hex()} if past else {}),
        "symbols": message.symbols.hex(),
        "raw": symbols_of(raw.symbols, vocabulary),
        "batch": [
            {
                "image": image,
                "ids": [None if codes and i not in answers else token for i, token in enumerate(ids)],
                "image_at": at,
                "answers": answers,
            }
            for image, ids, at, answers in rows
        ],
    }


def whole_dictionary(deflated: bytes) -> bytes:
    """As both sides keep it: filled up with zeros in front, and zeros alone before any was told."""
    return (read_dictionary(deflated) if deflated else b"").rjust(DICTIONARY, b"\0")


def symbols_of(compressed: bytes, vocabulary: int, dictionary: bytes = b"") -> list[int]:
    """The symbols in a stream."""
    raw = zlib.decompressobj(-15, zdict=dictionary).decompress(compressed)
    return np.frombuffer(raw, "<u2" if vocabulary + 5 <= 2**16 else "<u4").tolist()
