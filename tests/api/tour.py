"""Runs docs/tour.ipynb in a kernel of its own. `python tests/api/tour.py` saves it with the outputs of that run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).parent.parent.parent / "docs" / "tour.ipynb"


def read() -> Any:
    return nbformat.read(PAGE, as_version=4)


def executed(notebook: Any) -> Any:
    """The same with the outputs of a run. What libraries warn of on standard error depends on the machine, and goes."""
    fresh = copy.deepcopy(notebook)
    NotebookClient(fresh, timeout=120, kernel_name="python3", coalesce_streams=True).execute()
    for cell in fresh.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    fresh.metadata.language_info = {"name": "python"}
    return fresh


if __name__ == "__main__":
    nbformat.write(executed(read()), PAGE)
