"""Each case of `hostile_cases` and `hostile_links` against a real server, while an honest client trains with it."""

from __future__ import annotations

from collections.abc import Iterator

import hostile_links  # noqa: F401 - it adds its cases
import pytest
from arena import Arena
from conftest import Tiny
from hostile_cases import CASES


@pytest.fixture(scope="module")
def arena(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(tmp_path_factory.mktemp("hostile"), tiny)
    yield arena
    arena.end()


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_client_is_contained(arena: Arena, name: str, record_property: pytest.RecordProperty) -> None:
    steps = arena.withstand(CASES[name])
    peak = arena.server.peak_bytes()
    record_property("honest_steps", steps)
    record_property("peak_bytes", peak)
    record_property("bound_bytes", arena.bound)
    assert peak <= arena.bound, f"{peak} bytes, over {arena.bound}"
