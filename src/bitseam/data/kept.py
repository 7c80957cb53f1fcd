"""Which rows a run trains on, kept beside it: batches are looked up by number, so going on needs the same rows.

OUT/client/rows.json        how many rows the run began with, and a digest of their texts and pictures
OUT/client/bad_rows.jsonl   the rows that were left out: file, line, reason
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitseam.data.rows import BadRow, Row, digest_of, listed
from bitseam.errors import DataError


def keep_rows(
    folder: Path, rows: Sequence[Row], contents: Mapping[Path, bytes], bad: Sequence[BadRow], begun: bool
) -> None:
    """Write both files, after a run that has begun in the folder is found to have the same rows.

    contents: of each image, as `bitseam.data.inspection` has them. Raises DataError that names the rows that were
    left out since then, or are there again.
    """
    digest = digest_of((contents[row.image], row.question, row.answer) for row in rows)
    now = {"rows": len(rows), "digest": digest}
    path, left_out = folder / "rows.json", folder / "bad_rows.jsonl"
    try:
        if begun and path.exists():
            before = json.loads(path.read_text())
            if before != now:
                raise DataError(_difference(folder, before["rows"], len(rows), _read(left_out), bad))
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now))
        lines = [json.dumps({"file": str(one.file), "line": one.line, "reason": one.reason}) for one in bad]
        left_out.unlink(missing_ok=True)
        if lines:
            left_out.write_text("\n".join(lines) + "\n")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: what the run trains on cannot be read or written there: {error}") from error


def _read(path: Path) -> list[BadRow]:
    if not path.exists():
        return []
    plain = [json.loads(line) for line in path.read_text().splitlines()]
    return [BadRow(Path(one["file"]), one["line"], one["reason"]) for one in plain]


def _difference(folder: Path, count: int, now: int, before: Sequence[BadRow], bad: Sequence[BadRow]) -> str:
    old, new = ({(one.file, one.line): one for one in rows} for rows in (before, bad))
    told = (
        f"{folder} holds a run that began with {count:,} training rows, and the {now:,} of now have other pictures or "
        "texts, or another order"
    )
    if gone := [one for place, one in new.items() if place not in old]:
        told += f"\nleft out since then:\n{listed(gone)}"
    if back := [one for place, one in old.items() if place not in new]:
        told += f"\nleft out then, and usable now:\n{listed(back)}"
    return f"{told}\nGo on with the rows as they were, or begin anew with another folder in `out`"
