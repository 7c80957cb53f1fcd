"""Questions about images, as JSON Lines: one row a question.

    {"image": "scans/0001.png", "question": "Is there a fracture?", "answer": "no", "task": "fracture"}

Image paths are relative to the file's folder. `task` groups rows in reports and may be left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bitseam.errors import DataError


@dataclass(frozen=True)
class Row:
    image: Path
    question: str
    answer: str
    task: str = "all"


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file. Raises DataError that names file, line and field."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path}: no rows in it")
    return rows


def write_rows(path: Path, rows: list[Row]) -> None:
    """The inverse of `read_rows`."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            plain = {"image": str(row.image.relative_to(path.parent)), "question": row.question}
            file.write(json.dumps(plain | {"answer": row.answer, "task": row.task}) + "\n")


def _row(path: Path, number: int, line: str) -> Row:
    where = f"{path}:{number}"
    try:
        plain = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise DataError(f"{where}: a row is an object with image, question and answer")
    for name in ("image", "question", "answer"):
        value = plain.get(name)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {name} is missing or not text")
    image = path.parent / plain["image"]
    if not image.is_file():
        raise DataError(f"{where}: image {image} does not exist")
    return Row(image, plain["question"], plain["answer"], str(plain.get("task", "all")))
