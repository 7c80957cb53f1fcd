"""The client of interop/, in JavaScript, against real servers: every check by name, with whether it passed.

python tests/interop/node_client.py docs/results/interop.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from conftest import WIDTH, make_tiny
from node_process import Row
from node_runs import BATCH, CRASH_AFTER, IMAGE_TOKENS, STEPS, STOPPED_IN, Outcome, play

from bitseam.cli.machine import circumstances

NAME = "interop/ (JavaScript)"


def _falls(steps: dict[int, Row]) -> bool:
    return steps[STEPS]["loss"] < 0.8 * steps[1]["loss"]


def _bytes(o: Outcome, command: str) -> int:
    """Of the codes and the gradient of a micro-batch in step 1."""
    row = o.steps(command)[1]
    return BATCH * row["up_bytes_an_image"] + row["down_bytes"]


def _repeated_steps_agree(o: Outcome) -> bool:
    before, after = o.steps("train"), o.steps("train again")
    return all(before[step]["loss"] == after[step]["loss"] for step in (6, 7))


# What the reports come to, beside each line of theirs; the counter and the last answer are not the client's word.
CHECKS: dict[str, Callable[[Outcome], bool]] = {
    "ten steps, two of them again from a checkpoint": lambda o: (
        [*o.steps("train"), *o.steps("train again")] == [1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 10]
    ),
    "the loss falls by what the client learns": lambda o: _falls(o.steps("train") | o.steps("train again")),
    "a step has the same loss when it is taken again": _repeated_steps_agree,
    "no step is taken twice over a broken connection": lambda o: o.step_counter == CRASH_AFTER + 3,
    "codes of an image take 2 bits an element": lambda o: (
        {row["up_bytes_an_image"] for row in o.steps("train").values()} == {IMAGE_TOKENS * WIDTH * 2 // 8}
    ),
    "gradients take 2 bits an element and a scale a token": lambda o: (
        {row["down_bytes"] for row in o.steps("train").values()} == {BATCH * IMAGE_TOKENS * (2 + WIDTH * 2 // 8)}
    ),
    "codes and gradients at their entropy: fewer bytes, and the loss falls": lambda o: (
        _falls(o.steps("train at the entropy")) and _bytes(o, "train at the entropy") < _bytes(o, "train")
    ),
    "a server that is being stopped gets its checkpoint": lambda o: (
        [step for step, row in o.steps("train again").items() if row["stopping"]] == [STOPPED_IN]
        and o.row("train again", "another server process has taken the place of ours")["from"] == STOPPED_IN
    ),
    "both sides have the same checkpoints": lambda o: (
        o.server_steps == o.row("train again", f"checkpoint of step {STEPS}")["held"] == [STOPPED_IN, STEPS]
    ),
    "an answer has the tokens that the Python client gets": lambda o: (
        o.row("ask", "an answer is streamed")["ids"] == o.python_ids
    ),
}


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcome = play(folder, make_tiny(folder / "tiny"))
    found = [(f"{command}: {row['check']}", row["passed"]) for command, rows in outcome.rows.items() for row in rows]
    found += [(check, holds(outcome)) for check, holds in CHECKS.items()]
    commit = circumstances(1)["commit"]
    rows = [{"client": NAME, "check": check, "passed": passed, "commit": commit} for check, passed in found]
    out.write_text(json.dumps(rows, indent=1) + "\n")
    failed = [check for check, passed in found if not passed]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
