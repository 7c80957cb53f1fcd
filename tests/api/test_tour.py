"""The notebook runs, and what it shows is what it gives."""

from __future__ import annotations

import re
from typing import Any

import tour


def shape(notebook: Any) -> list[list[tuple[str, str]]]:
    """Of each cell of code: its outputs, with every number as N."""
    return [
        [
            (output.output_type, re.sub(r"\d[\d,.]*", "N", " ".join(str(text).split())))
            for output in cell.outputs
            for text in [output.get("text") or [*sorted(output.data), output.data.get("text/plain", "")]]
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_tour_runs_and_its_saved_outputs_are_those_of_a_run() -> None:
    saved = tour.read()
    shown = shape(saved)
    assert sum(map(len, shown)) >= 10
    assert shape(tour.executed(saved)) == shown
    answers = str(shown)
    assert all(f"{colour} -> {colour} (N bytes up)" in answers for colour in ("red", "green", "blue", "yellow"))
    assert "/" not in "".join(text for outputs in shown for kind, text in outputs if kind == "stream")  # no paths
