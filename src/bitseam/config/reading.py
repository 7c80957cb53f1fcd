"""Recipes: TOML in, canonical JSON out."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bitseam.config.recipe import Recipe, Stream
from bitseam.config.shipped import find_recipe
from bitseam.errors import ConfigError, printable

T = TypeVar("T")
_MOST_FAULTS = 20  # that an error names
_MOST_BYTES = 2**20  # of a recipe
# Python's reader of TOML takes gigabytes for keys of very many parts.
_DEEP_KEY = re.compile(r"""(?:\.[ \t]*(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*){20}""")


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    plan: str | Path | None = None,
) -> Recipe:
    """Read a recipe, a file, tables, or by the name of one that comes with Bitseam; `plan`, a fragment of one, is laid
    over it, and over both `overrides`: dotted keys to values.

    Raises ConfigError that names the file and each wrong key.
    """
    if isinstance(source, Mapping):
        raw, where = deepcopy(dict(source)), "the recipe"
    else:
        raw, where = _read(find_recipe(source)), str(source)
    if plan is not None:
        _lay_over(raw, _read(plan))
        where = f"{where} with {plan}"
    for key, value in (overrides or {}).items():
        _set(raw, key.split("."), value, where)
    return parse_recipe(raw, printable(where))


def parse_recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    """Check a nested mapping against the recipe's fields; `where` names it in errors."""
    return _parse(Recipe, raw, where)


def parse_stream(raw: Mapping[str, Any], where: str) -> Stream:
    """As `parse_recipe`, of the table of one stream."""
    return _parse(Stream, raw, where)


def _parse(kind: type[T], raw: Mapping[str, Any], where: str) -> T:
    try:
        return TypeAdapter(kind).validate_python(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        lines = [_explain(item) for item in faults[:_MOST_FAULTS]]
        if len(faults) > _MOST_FAULTS:
            lines.append(f"and {len(faults) - _MOST_FAULTS:,} more")
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested too deeply") from error


def canonical(value: Any) -> str:
    """Dataclass, dict or list -> JSON with sorted keys and no spaces: equal values give equal text."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _read(path: str | Path) -> dict[str, Any]:
    where = printable(str(path))
    try:
        with Path(path).open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        text = raw.decode()
        if len(raw) > _MOST_BYTES or _DEEP_KEY.search(text):
            raise ConfigError(f"{where}: over {_MOST_BYTES:,} bytes, or a key of over 20 parts: not a recipe")
        return tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: cannot read the recipe: {printable(str(error))}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: it is nested too deeply") from error
    except ValueError as error:  # TOML's own, and numbers that Python does not read
        raise ConfigError(f"{where}: not valid TOML: {printable(str(error))}") from error


def _lay_over(raw: dict[str, Any], fragment: Mapping[str, Any]) -> None:
    for key, value in fragment.items():
        if isinstance(value, dict) and isinstance(raw.get(key), dict):
            _lay_over(raw[key], value)
        else:
            raw[key] = value


def _explain(item: Any) -> str:
    key = printable(".".join(str(part) for part in item["loc"] if not str(part).startswith("literal[")))
    if item["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key"
    if item["type"] == "missing":
        return f"{key}: missing"
    shown = "" if isinstance(item["input"], dict) else f" (got {_shown(item['input'])})"
    return f"{key}: {printable(item['msg'])}{shown}".removeprefix(": ")  # no key: the table as a whole


def _shown(value: Any) -> str:
    try:
        return printable(repr(value))
    except (ValueError, RecursionError):  # a number of very many digits, a list of very many lists
        return f"a very large {type(value).__name__}"


def _set(raw: dict[str, Any], keys: list[str], value: Any, where: str) -> None:
    for key in keys[:-1]:
        raw = raw.setdefault(key, {})
        if not isinstance(raw, dict):
            raise ConfigError(printable(f"{where}: {'.'.join(keys)}: {key} is not a table"))
    raw[keys[-1]] = value
