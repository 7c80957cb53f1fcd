"""Short forms of what `make faults` does: kills and a broken link, after which the weights are those of a quiet run."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Tiny
from pair import SIDES, Pair
from proxy import HARMLESS, KINDS, draw_faults
from survival import GAP, LINK, Kill, killed, through_proxy, undisturbed
from tiny_run import write_tiny_run


@pytest.fixture(scope="module")
def right(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_tiny_run(folder, tiny)
    return undisturbed(folder, *LINK)


def test_kills_of_either_side_and_of_both(tiny: Tiny, tmp_path: Path, right: dict[str, bytes]) -> None:
    write_tiny_run(tmp_path, tiny)
    kills = [
        Kill(("client",), "writing", 10, "server", 0.0),
        Kill(("server",), "step", 27, "server", 0.01),
        Kill(SIDES, "written", 40, "client", 0.0),
    ]
    survived = killed(tmp_path, kills, right)
    assert survived.failure == ""
    assert len(survived.troubles) == 3
    assert sorted(name.split("/")[0] for name in right) == 2 * ["client"] + 3 * ["server"]
    assert sum("training" in name for name in right) == 2  # optimisers too


def test_a_link_that_breaks_in_every_way(tiny: Tiny, tmp_path: Path, right: dict[str, bytes]) -> None:
    write_tiny_run(tmp_path, tiny)
    survived = through_proxy(tmp_path, draw_faults(0, GAP, seconds=0.5), right, *LINK)
    assert survived.failure == ""
    assert len(survived.troubles) == len(KINDS)
    assert survived.seconds < 60
    told = Pair(tmp_path).output("client")
    assert told.count("the link broke") >= (len(KINDS) - len(HARMLESS)) // 2  # one may strike while another is mended
    assert "trying again in" in told
