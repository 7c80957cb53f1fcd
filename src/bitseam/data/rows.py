"""Questions about images, as JSON Lines: one row a question.

    {"image": "scans/0001.png", "question": "Is there a fracture?", "answer": "no", "task": "fracture"}

Image paths are relative to the file's folder. `task` groups rows in reports and may be left out. Lines end at a line
feed alone, as the format says: other separators of Unicode inside a string are text.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never

from bitseam.errors import DataError, printable

_SHOWN = 20  # bad rows in one message
_SHORT = 60  # characters of a value in a message
_PACKED = (b"\x1f\x8b", b"PK\3\4", b"(\xb5/\xfd", b"BZh", b"\xfd7zXZ", b"PAR1")  # gzip, zip, zstd, bzip2, xz, Parquet
_MARK = b"\xef\xbb\xbf"  # the byte order mark that some editors begin UTF-8 with


@dataclass(frozen=True, slots=True)
class Row:
    image: Path
    question: str
    answer: str
    task: str = "all"
    line: int = field(default=0, compare=False)  # in its file, from 1


@dataclass(frozen=True, slots=True)
class BadRow:
    """What is wrong in a line of a file; line 0 is the file as a whole."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.line else f"{self.file}: {self.reason}"


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a file. Raises DataError that names every bad row by file, line and field."""
    rows, bad = scan_rows(path)
    if bad:
        raise DataError(listed(bad))
    return rows


def scan_rows(path: str | Path) -> tuple[list[Row], list[BadRow]]:
    """The good rows of a file and the bad ones, both in order. Images are looked for, not opened."""
    path = Path(path)
    rows: list[Row] = []
    bad: list[BadRow] = []
    reader = _Reader(path.parent)
    number = 0
    try:
        with _without_collection(), path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(_MARK)
                    _check_start(line)
                if line.strip():
                    try:
                        rows.append(reader.row(number, line))
                    except _BadValueError as error:
                        bad.append(BadRow(path, number, str(error)))
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        return [], [BadRow(path, 0, f"cannot be read: {error}")]
    except _BadFileError as error:
        return [], [BadRow(path, 0, str(error))]
    if not rows and not bad:
        bad = [BadRow(path, 0, "no rows in it")]
    return rows, bad


def write_rows(path: Path, rows: list[Row]) -> None:
    """The inverse of `read_rows`."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            plain = {"image": str(row.image.relative_to(path.parent)), "question": row.question}
            file.write(json.dumps(plain | {"answer": row.answer, "task": row.task}) + "\n")


def digest_of(rows: Iterable[tuple[str | bytes, ...]]) -> str:
    """SHA-256, in hex, of what matters of each row, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()


def listed(bad: Sequence[BadRow]) -> str:
    """Bad rows for a person to read: the first of them, a line each, and how many more there are."""
    lines = [str(row) for row in bad[:_SHOWN]]
    if len(bad) > _SHOWN:
        lines.append(f"and {len(bad) - _SHOWN:,} more")
    return "\n".join(lines)


@contextmanager
def _without_collection() -> Iterator[None]:
    """While many objects are made that all stay, looking for garbage among them takes as long as making them."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class _BadValueError(Exception):
    """Why a line is no row."""


class _BadFileError(Exception):
    """Why a file has no rows at all."""


class _Reader:
    """Turns lines into rows; equal paths and short texts share one object, so that a large file takes little memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._images: dict[str, Path | str] = {}  # as written -> path, or what is wrong with it
        self._texts: dict[str, str] = {}

    def row(self, number: int, line: bytes) -> Row:
        plain = _parse(line)
        image, question, answer = (_text(plain, name) for name in ("image", "question", "answer"))
        task = "all" if plain.get("task") in (None, "") else _text(plain, "task")
        found = self._images.get(image)
        if found is None:
            found = self._images[image] = self._find(image)
        if isinstance(found, str):
            raise _BadValueError(found)
        return Row(found, self._shared(question), self._shared(answer), self._shared(task), number)

    def _shared(self, text: str) -> str:
        return self._texts.setdefault(text, text) if len(text) <= 32 else text

    def _find(self, image: str) -> Path | str:
        if image.startswith("data:"):
            return f"image is a data URI, {_shown(image)}: save the picture as a file and give its path"
        path = self._folder / image
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return f"image {printable(str(path))} does not exist"
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return f"image {printable(str(path))} cannot be reached: {reason}"
        return path if stat.S_ISREG(mode) else f"image {printable(str(path))} is not a file"


def _shown(value: object) -> str:
    return printable(repr(value), _SHORT)


def _check_start(line: bytes) -> None:
    """Files that are not JSON Lines as a whole are told in one line, not once a line."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _BadFileError("is UTF-16: save it as UTF-8")
    if line.startswith(_PACKED):
        raise _BadFileError("is compressed, or a table of another kind: unpack or export it as JSON Lines")
    if line.lstrip().startswith(b"[") and not _is_json(line):
        raise _BadFileError("is one JSON array: write one object a line, without commas between them")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in pairs:
        if key in plain:
            raise _BadValueError(f"{_shown(key)} stands in it twice")
        plain[key] = value
    return plain


def _no_number(name: str) -> Never:
    raise _BadValueError(f"not JSON: {name} is no number of JSON")


# Not strict: a tab or form feed that stands in a string as it is, is text too.
_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, strict=False).decode


def _parse(line: bytes) -> dict[str, Any]:
    try:
        plain = _decode(line.decode())
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise _BadValueError(f"not UTF-8: byte 0x{byte:02x} at place {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:  # of one line: its number and column say nothing more
        raise _BadValueError(f"not JSON: {error.msg} at place {error.pos + 1} of the line") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise _BadValueError(f"not JSON that can be read: {error}") from error
    if not isinstance(plain, dict):
        raise _BadValueError("a row is an object with image, question and answer")
    return plain


def _text(plain: dict[str, Any], name: str) -> str:
    value = plain.get(name)
    if not isinstance(value, str):
        if value is None:
            raise _BadValueError(f"{name} is missing")
        if isinstance(value, list | dict):
            raise _BadValueError(f"{name} is not one text but {_shown(value)}")
        raise _BadValueError(f"{name} is not text but {_shown(value)}: write it in quotes")
    if not value.strip():
        raise _BadValueError(f"{name} is missing: its text is empty")
    if not (value.isascii() or _is_writable(value)):
        raise _BadValueError(f"{name} has half of a surrogate pair, which is no character: {_shown(value)}")
    return value


def _is_writable(text: str) -> bool:
    """Whether UTF-8 can say it: not where an escape such as \\ud83d stands alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
