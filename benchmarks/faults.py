"""What a training session survives, and what that costs: OUT/report.json, made by `make faults`.

    python benchmarks/faults.py [--kills 50] [--rounds 3] [--seed 0] [--parts kills proxy ...] [--out runs/faults]

kills     `kill -9` of client, server or both at random moments of tiny runs, several in each; every run must end with
          the weights and optimisers of an undisturbed one, to the bit
proxy     tiny runs over a link that tests/faults/proxy.py breaks, each kind of fault once a run; likewise
hostile   tests/hostile, one case a test
clients   tests/sessions/test_sixteen.py: many clients of one server; it records `clients` and
          `bytes_per_idle_client`
overhead  of checkpoints and of exactly-once, at the demo's size: benchmarks/overhead.py

Each part writes OUT/PART.json; `make fuzz` writes OUT/fuzz.json. The report is put together of them all, so a part that
is left out is taken as it lies there.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TESTS = Path(__file__).resolve().parent.parent / "tests"
HOSTILE, MANY_CLIENTS = TESTS / "hostile", TESTS / "sessions" / "test_sixteen.py"
sys.path += [str(TESTS), str(TESTS / "faults")]

import overhead  # noqa: E402
from conftest import make_tiny  # noqa: E402
from processes import RECIPE  # noqa: E402
from proxy import draw_faults  # noqa: E402
from survival import GAP, LINK, Survival, draw_kills, killed, through_proxy, undisturbed  # noqa: E402
from tiny_run import write_tiny_run  # noqa: E402

from bitseam.cli.machine import circumstances  # noqa: E402

KILLS_A_RUN = 5
Figures = dict[str, Any]
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
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    about = circumstances(threads=1)
    for name in options.parts:
        start = time.perf_counter()
        figures = PARTS[name](options)
        figures = {**figures, "seconds": time.perf_counter() - start, "commit": about["commit"]}
        (options.out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    report = put_together(options.out) | about
    (options.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for field in FIELDS:
        print(f"{field:22} {report[field]}")
    if report["bit_identical"] < report["kills"] or report["survived"] < report["proxy_faults"]:
        sys.exit("not everything was survived")


def put_together(out: Path) -> Figures:
    """The report's fields from the parts' files. Exits, saying what makes it, where one is not there."""
    report = {}
    for field, part in FIELDS.items():
        path = out / f"{part}.json"
        try:
            found = json.loads(path.read_text())
            # `make fuzz` calls its inputs `inputs`.
            report[field] = found["inputs"] if field == "fuzz_inputs" else found[field]
        except (OSError, ValueError, KeyError) as error:
            maker = "make fuzz" if part == "fuzz" else f"python benchmarks/faults.py --parts {part}"
            sys.exit(f"{path}: no {field} ({type(error).__name__}); `{maker}` writes it")
    return report


def kills(options: argparse.Namespace) -> Figures:
    rng = random.Random(options.seed)

    def runs(new: Callable[[], Path]) -> Iterator[Survival]:
        right, left = undisturbed(new()), options.kills
        while left:
            survived = killed(new(), draw_kills(rng, min(KILLS_A_RUN, left)), right)
            left -= len(survived.troubles)
            yield survived

    return survive("kills", "bit_identical", runs)


def proxy(options: argparse.Namespace) -> Figures:
    def runs(new: Callable[[], Path]) -> Iterator[Survival]:
        right = undisturbed(new(), *LINK)
        for number in range(options.rounds):
            yield through_proxy(new(), draw_faults(options.seed + number, GAP), right, *LINK)

    return survive("proxy_faults", "survived", runs)


def survive(inflicted: str, endured: str, runs: Callable[[Callable[[], Path]], Iterable[Survival]]) -> Figures:
    """Go through runs, each in a folder of its own; `inflicted` counts their troubles, `endured` those of runs that
    ended as they should."""
    done: list[Survival] = []
    with tempfile.TemporaryDirectory() as base:
        tiny = make_tiny(Path(base))

        def new() -> Path:
            return write_tiny_run(Path(tempfile.mkdtemp(dir=base)), tiny).parent

        for survived in runs(new):
            done.append(survived)
            told = survived.failure or "bit-identical"
            print(
                f"{inflicted}: run {len(done)}, {len(survived.troubles)} in {survived.seconds:.0f} s: {told}",
                flush=True,
            )
            if survived.failure:
                print(*survived.troubles, sep="\n  ")
    return {
        inflicted: sum(len(survived.troubles) for survived in done),
        endured: sum(len(survived.troubles) for survived in done if not survived.failure),
        "runs": [asdict(survived) for survived in done],
    }


def hostile(options: argparse.Namespace) -> Figures:
    tests = run_tests(HOSTILE, options.out / "hostile.xml")
    cases = [case for case in tests.iter("testcase") if case.find("skipped") is None]
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return {"hostile_cases": len(cases), "contained": len(cases) - len(failed), "failed": failed}


def clients(options: argparse.Namespace) -> Figures:
    tests = run_tests(MANY_CLIENTS, options.out / "clients.xml")
    recorded = {entry.get("name"): float(entry.get("value", "nan")) for entry in tests.iter("property")}
    if tests.find(".//failure") is not None or tests.find(".//error") is not None:
        sys.exit(f"{MANY_CLIENTS}: a test fails; see {options.out / 'clients.xml'}")
    return {name: int(recorded[name]) for name in ("clients", "bytes_per_idle_client") if name in recorded}


def run_tests(tests: Path, results: Path) -> ElementTree.Element:
    """Run the tests of a folder or file, slow ones too, and read what pytest says of each."""
    if not tests.exists():
        sys.exit(f"{tests}: no such tests, and the report needs them")
    options = ["-q", "-m", "", "-o", "junit_family=xunit1", f"--junitxml={results}"]  # xunit1 has properties
    command = [sys.executable, "-m", "pytest", *options, str(tests)]
    status = subprocess.run(command, check=False).returncode
    if status not in (0, 1):  # all passed, or some failed
        sys.exit(f"{' '.join(command)} ended with status {status}")
    return ElementTree.parse(results).getroot()


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "kills": kills,
    "proxy": proxy,
    "hostile": hostile,
    "clients": clients,
    "overhead": lambda options: overhead.measure(RECIPE),
}


if __name__ == "__main__":
    main()
