"""Codecs of others: classes that packages name in the entry point group `bitseam.codecs`, by their `codec_id`.

A package is imported when one of its codecs is asked for, and not before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bitseam.codecs.base import Codec
from bitseam.errors import CodecError, first_sentence

GROUP = "bitseam.codecs"


@cache
def named() -> dict[str, list[EntryPoint]]:
    """What packages name, with the entry points of each name; looked up once."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


@cache
def load(name: str, ours: Collection[str]) -> type[Any]:
    """The class of one of `named`.

    ours: names of codecs that are built in. Raises CodecError that names the package where two codecs share a name,
    where it cannot be imported, and for what is no codec.
    """
    points = named()[name]
    what = f"codec {name} (entry point {GROUP}, {', '.join(_origin(point) for point in points)})"
    if name in ours:
        raise CodecError(f"{what}: Bitseam has a codec of that name; give yours another, or remove the package")
    if len(points) > 1:
        raise CodecError(f"{what}: several packages name it; remove all but one")
    try:
        kind = points[0].load()
    except Exception as error:  # whatever another's module raises
        raise CodecError(f"{what} cannot be imported: {first_sentence(error, named=True)}") from error
    if not (isinstance(kind, type) and issubclass(kind, Codec) and is_dataclass(kind)):
        raise CodecError(f"{what} is no dataclass derived from bitseam.codecs.Codec")
    if (own := getattr(kind, "codec_id", None)) != name:
        raise CodecError(f"{what} calls itself {own!r}: codec_id and the entry point's name must be one")
    if kind.__abstractmethods__:
        raise CodecError(f"{what} lacks {', '.join(sorted(kind.__abstractmethods__))}")
    return kind


def _origin(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name if point.dist else 'an unknown package'}"
