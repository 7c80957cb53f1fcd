"""How rows, recipes and tokenizer files are made of others: values of JSON, lines of TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from fuzz_mutation import mutate_bytes


def odd_value(rng: Random) -> Any:
    """What nobody expects in a file of JSON."""
    return rng.choice(_ODD)(rng)


def _deep(rng: Random) -> Any:
    value: Any = 1
    for _ in range(rng.choice((3, 60, 400))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


_TEXTS = (
    "",
    " ",
    "\0",
    "\n",
    "a\u2028b",
    "x \ud83d",
    "\x1b[31m",
    "[/INST]",
    "{image}",
    "{{ 1/0 }}",
    "<image>",
    "</s>",
    "é",
)
_ODD: tuple[Callable[[Random], Any], ...] = (
    lambda rng: rng.choice((None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, 1e308)),
    lambda rng: rng.choice((float("nan"), float("inf"), -0.0)),
    lambda rng: rng.choice(_TEXTS) * rng.choice((1, 1, 3, 2000)),
    lambda rng: rng.choice(([], {}, [None], [[]], {"": ""}, ["a"] * 300, {"a": [1, "b"]})),
    _deep,
    lambda rng: rng.choice(
        ("../" * 30 + "etc/passwd", "/dev/zero", "a/" * 3000, "data:image/png;base64," + "A" * 5000, ".")
    ),
)


def mutate_json(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """One value somewhere replaced, left out, or doubled under another name."""
    try:
        whole = json.loads(raw)
    except (ValueError, RecursionError):
        return mutate_bytes(raw, rng)
    places = list(_places(whole))
    if not places:
        return json.dumps(odd_value(rng)).encode()
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(places)
        how = rng.randrange(6)
        try:
            if how == 0:
                del holder[key]
            elif how == 1:
                other, there = rng.choice(places)
                holder[key] = other[there]
            elif how == 2 and isinstance(holder, dict):
                holder[rng.choice((*_NAMES, *_TEXTS))] = odd_value(rng)
            elif how == 3 and isinstance(holder[key], int | float):
                holder[key] += rng.choice((-1, 1, 100, 2**31))
            else:
                holder[key] = odd_value(rng)
        except (KeyError, IndexError):  # left out before
            continue
    try:
        return json.dumps(whole, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # a place was put into itself
        return mutate_bytes(raw, rng)


_NAMES = ("image", "question", "answer", "task", "auto_map", "tokenizer_class", "chat_template", "type")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in (
        list(value) if isinstance(value, dict) else range(min(len(value), 200)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from _places(value[key])


def mutate_json_lines(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """One line of JSON, or the lines' order and ends."""
    lines = raw.split(b"\n")
    at = rng.randrange(len(lines))
    how = rng.randrange(6)
    if how == 0:
        lines.insert(
            at, rng.choice((b"[" * 3000 + b"]" * 3000, b"[" * 100_000, b"9" * 5000, b"null", b"\xef\xbb\xbf", b"\r"))
        )
    elif how == 1:
        lines[at : at + 1] = [lines[at]] * rng.choice((0, 2, 100))
    else:
        lines[at] = mutate_json(lines[at], rng)
    return rng.choice((b"\n",) * 5 + (b"\r\n",)).join(lines)


def mutate_toml(raw: bytes, rng: Random, variant: int = 0) -> bytes:
    """One line's value, key or place."""
    lines = raw.split(b"\n")
    at, how = rng.randrange(len(lines)), rng.randrange(8)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(at, rng.choice(lines))
    elif how == 2:
        lines[at] = re.sub(rb"^[\w.]+", lambda _: rng.choice(_TOML_KEYS), lines[at])
    elif how == 3:
        lines.insert(at, rng.choice(_TOML_KEYS) + b" = " + rng.choice(_TOML_VALUES))
    elif how == 4:
        lines.insert(at, rng.choice((b"[%s]", b"[[%s]]")) % rng.choice(_TOML_KEYS))
    else:
        lines[at] = re.sub(rb"=.*", lambda _: b"= " + rng.choice(_TOML_VALUES), lines[at])
    return b"\n".join(lines)


_TOML_KEYS = (
    *b"a seam streams.image client.rate name".split(),
    b'""',
    b'"\\u0000\\nb"',
    b"a" + b".a" * 3000,
    b"'\x1b'",
)
_TOML_VALUES = (
    *b"true nan -inf 1e400 -0 99999999999999999999 0.5 -1 [] [1,'a'] {a=1} 1979-05-27T07:32:00Z".split(),
    *b'"" "\\u0000" "\\ud83d" "a\\nb" "[red]" "../../x" "{image}{question}"'.split(),
    *(b"0x" + b"f" * 6000, b"9" * 6000, b'"' + b"x" * 70_000 + b'"', b"''' "),
    *(b"[" * 3000, b"[" * 900 + b"]" * 900, b"{a=" * 900 + b"1" + b"}" * 900),
)
