"""The demo's recipe at several seeds of both sides, coded and fp16: docs/results/demo.json.

    python benchmarks/seeds.py --demo runs/demo --json docs/results/demo.json [--seeds 0 1 2 3 4]

After `make demo`: trains and evaluates what is not there yet, across two processes over TLS, and writes the demo's
report without its curves and samples, with the answers of all seeds. Traffic, time and memory of the report stay those
of its own two runs; `runs` has the bytes of each. Prints the table that README shows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from processes import about_run, summary_of, train
from traffic import POINTS

from bitseam.data.rows import read_rows
from bitseam.evals.compare import compare
from bitseam.evals.marks import Marks, joined, mark, packed
from bitseam.evals.report import VARIANTS, summary_markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="what `make demo` wrote")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", default=[0, 1, 2, 3, 4], type=int)
    options = parser.parse_args()
    report = json.loads((options.demo / "report.json").read_text())
    questions = read_rows(options.demo / "questions" / "test.jsonl")
    rows, sides = [], {}
    for name in VARIANTS:
        marks = []
        for seed in options.seeds:
            run = train(options.demo, name, POINTS[name], seed)
            summary = summary_of(run)
            about = about_run(run) if (run / "about.json").exists() else report  # one of the demo's own two
            rows.append({"side": name, "seed": seed, **run_row(summary, about)})
            marks.append(mark(name, seed, questions, summary["answers"]))
        sides[name] = joined(marks)
    kept = with_seeds(report, sides, rows)
    options.json.write_text(json.dumps(kept, indent=1) + "\n")
    print(summary_markdown(kept), end="")


def run_row(summary: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of one run: its bytes, and where it was made."""
    traffic = {name: summary[name] for name in ("up_bytes", "down_bytes", "socket_bytes")}
    return traffic | {name: about[name] for name in ("commit", "machine", "versions", "threads", "date")}


def with_seeds(
    report: Mapping[str, Any], sides: Mapping[str, Marks], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A report of the demo's with the answers of these sides, counted over all their seeds."""
    tasks = {}
    for task, found in report["tasks"].items():
        marks = {name: sides[name].of(task) for name in VARIANTS}
        counts = {name: {"correct": int(of.sum()), "total": of.size} for name, of in marks.items()}
        tasks[task] = {"chance": found["chance"], **counts}
    return {
        **{name: value for name, value in report.items() if name not in ("curves", "samples")},
        "tasks": tasks,
        "marks": packed([sides[name] for name in VARIANTS]),
        "comparison": compare(*(sides[name] for name in VARIANTS)).as_json(),
        "runs": list(runs),
    }


if __name__ == "__main__":
    main()
