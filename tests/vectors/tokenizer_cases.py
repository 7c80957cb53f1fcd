"""Vectors of the tokenizer's fingerprint, computed from the texts of files alone: no tokenizer is loaded."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import rfc8785

WORDS = ["<unk>", "<s>", "</s>", "what", "is", "this", "cat", "é"]


def vectors() -> list[dict[str, Any]]:
    plain = _tokenizer(["<unk>", "<s>", "</s>"])
    ends = {"eos_token": "</s>", "unk_token": "<unk>"}
    return [
        _vector("begin and end", plain, {**ends, "bos_token": "<s>"}, {}, 1),
        _vector("no begin", plain, ends, {}, None),
        _vector(
            "a token that tokenizer.json lacks", plain, {**ends, "pad_token": "<pad>"}, {"<pad>": len(WORDS)}, None
        ),
        _vector("a token that tokenizer.json does not mark", _tokenizer(["<unk>"]), ends, {"</s>": 2}, None),
        _vector("the same in other bytes", plain + "\n", ends, {}, None),
    ]


def _vector(
    name: str, tokenizer: str, config: dict[str, Any], added: dict[str, int], begin: int | None
) -> dict[str, Any]:
    facts = rfc8785.dumps({"added": added, "begin": begin, "end": WORDS.index("</s>")})
    digits = hashlib.sha256(tokenizer.encode()).hexdigest()
    whole = hashlib.sha256(f"{digits}\n".encode() + facts).hexdigest()
    told = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config})
    return {"name": name, "tokenizer": tokenizer, "config": told, "facts": facts.decode(), "fingerprint": whole[:16]}


def _tokenizer(special: list[str]) -> str:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": WORDS.index(word), "content": word, **flags} for word in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "<unk>"},
    }
    return json.dumps(whole, ensure_ascii=False)
