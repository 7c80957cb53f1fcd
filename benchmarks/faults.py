"""What a training session survives, and what that costs: everything in runs/faults/report.json.

    python benchmarks/faults.py [--kills 50] [--rounds 3] [--seed 0] [--parts kills proxy ...] [--out runs/faults]

kills     `kill -9` of client, server or both at random moments of tiny runs, several in each; each run must end with the
          weights of an undisturbed one, optimisers included, to the bit
proxy     runs over a link that is cut, delayed, garbled ... by tests/faults/proxy.py; each kind of fault once a round
hostile   tests/hostile, one case each
clients   tests/clients: many clients of one server
overhead  of checkpoints and of keeping what a repeated message needs, at the demo's size
fuzz      is `make fuzz`'s own, which writes OUT/fuzz.json

Each part writes OUT/PART.json; the report is made of them all. A part that was not run is taken as it lies there.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]

from conftest import Tiny, make_tiny  # noqa: E402
from overhead import overhead  # noqa: E402
from proxy import KINDS, draw_faults  # noqa: E402
from survival import LINK, Survival, draw_kills, killed, through_proxy, undisturbed  # noqa: E402
from tiny_run import write_tiny_run  # noqa: E402

from bitseam.cli.machine import circumstances  # noqa: E402

KILLS_A_RUN = 5
GAP = 2500  # bytes between faults, about: a step of the tiny run has some 700 each way, a handshake 4,000
SECONDS = 1.5  # that a fault lasts, at the most
FIELDS = {  # of the report, and the part that each comes from
    "kills": "kills",
    "bit_identical": "kills",
    "proxy_faults": "proxy",
    "survived": "proxy",
    "fuzz_inputs": "fuzz",
    "undocumented_errors": "fuzz",
    "hostile_cases": "hostile",
    "contained": "hostile",
    "clients": "clients",
    "bytes_per_idle_client": "clients",
    "checkpoint_overhead": "overhead",
    "exactly_once_overhead": "overhead",
}




def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="runs through the proxy, each with all kinds of faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        start = time.perf_counter()
        figures = PARTS[name](options)
        figures |= {"seconds": time.perf_counter() - start, **circumstances(threads=1)}
        (options.out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    report = join(options.out) | circumstances(threads=1)
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for field in FIELDS:
        print(f"{field:24} {report[field]}")


def join(out: Path) -> dict[str, Any]:
    """The report's fields from the parts' files. Exits, naming the part, where one is missing or has no such field."""
    report = {}
    for field, part in FIELDS.items():
        path = out / f"{part}.json"
        try:
            report[field] = json.loads(path.read_text())[field]
        except (OSError, ValueError, KeyError) as error:
            how = "make fuzz" if part == "fuzz" else f"python benchmarks/faults.py --parts {part}"
            sys.exit(f"{path}: {field} is missing ({type(error).__name__}); `{how}` writes it")
    return report


def kills(options: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(options.seed)

    def runs(new: Callable[[], Path]) -> Iterator[Survival]:
        right, left = undisturbed(new()), options.kills
        while left:
            survived = killed(new(), draw_kills(rng, min(KILLS_A_RUN, left)), right)
            left -= len(survived.troubles)
            yield survived

    counted = survive("kills", runs)
    return {"kills": counted["troubles"], "bit_identical": counted["survived"], **counted}


def proxy(options: argparse.Namespace) -> dict[str, Any]:
    def runs(new: Callable[[], Path]) -> Iterator[Survival]:
        right = undisturbed(new(), *LINK)
        for number in range(options.rounds):
            faults = draw_faults(options.seed + number, GAP, 1, KINDS, SECONDS)
            yield through_proxy(new(), faults, right, *LINK)

    counted = survive("proxy", runs)
    return {"proxy_faults": counted["troubles"], **counted}


def survive(name: str, runs: Callable[[Callable[[], Path]], Iterable[Survival]]) -> dict[str, Any]:
    """Go through runs, each with a new folder; what was inflicted, and how much of it in runs that ended well."""
    with tempfile.TemporaryDirectory() as folder:
        made = (make_folder(Path(folder) / str(number), tiny) for tiny in [make_tiny(folder)] for number in count())
        done = []
        for survived in runs(lambda: next(made)):
            done.append(survived)
            print(f"{name}: run {len(done)}, {len(survived.troubles)} in {survived.seconds:.0f} s: ", end="")
            print(survived.failure or "bit-identical", flush=True)
            if survived.failure:
                print(*survived.troubles, sep="\n  ", flush=True)
    return {
        "troubles": sum(len(survived.troubles) for survived in done),
        "survived": sum(len(survived.troubles) for survived in done if not survived.failure),
        "runs": [asdict(survived) for survived in done],
    }
