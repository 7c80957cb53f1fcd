"""Rooms: who may import whom, and how large they may grow."""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "bitseam"
HOUSE = ROOT / "docs" / "results" / "house.json"
GROUND = {"errors", "console", "config"}
CODING = {"quant", "codecs", "codecs.entropy"}
NETWORK = {"wire", "transport"}
MODELS = {"models", "models.weights", "models.vision", "models.language"}
SESSIONS = {*GROUND, *CODING, *NETWORK, *MODELS, "text", "streams", "runs", "sessions"}
# A room is a folder, with its inner rooms under their dotted names, or a module on the ground that others share.
ALLOWED = {
    "errors": set(),
    "console": {"errors"},
    "config": {"errors"},  # a recipe's faults are errors of ours
    "quant": {"errors"},
    "codecs": {"quant", "errors", "codecs.entropy"},
    "codecs.entropy": {"quant", "errors", "codecs"},
    "wire": {"errors"},
    "transport": {"wire", "errors"},
    "text": {"wire", "config", "errors"},
    "streams": {*CODING, "wire", "config", "errors"},
    "testing": {*CODING, "streams", "errors"},
    "models.weights": {"errors"},
    "models.vision": {"models.weights", "config", "errors"},
    "models.language": {"models.weights", "config", "errors"},
    "models": {*MODELS, *CODING, "text", "streams", "config", "errors"},
    "runs": {*MODELS, "text", "streams", *GROUND},
    "data": {*MODELS, "text", "data.assets", *GROUND},
    "data.assets": GROUND,
    "sessions": SESSIONS,
    **dict.fromkeys(("train", "evals"), SESSIONS),
    "checks": {*SESSIONS, "data", "data.assets", "evals"},
    "serve": {*SESSIONS, "checks"},
    "api": {*SESSIONS, "checks", "data", "data.assets", "train", "evals", "serve"},
    "cli": {*SESSIONS, "checks", "data", "data.assets", "train", "evals", "serve", "api"},
}
FORBIDDEN_OUTSIDE = {"wire": {"torch", "socket", "grpc"}, "transport": {"torch"}}


def room_of(parts: Sequence[str]) -> str:
    """The room of a module, or of a name in it: the longest of its dotted beginnings that is one."""
    for count in range(len(parts), 0, -1):
        if (name := ".".join(parts[:count])) in ALLOWED:
            return name
    raise AssertionError(f"{'.'.join(parts)} is in no room of the table")


def violations(room: str, module: str, source: str) -> list[str]:
    """Imports of `source` that `room` may not make."""
    found = []
    allowed = {*ALLOWED[room], room}
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "bitseam"
                else [node.module or ""]
            )
        for name in names:
            top, _, rest = name.partition(".")
            if top == "bitseam":
                if (other := room_of(rest.split("."))) not in allowed:
                    found.append(f"{module}: {room} may not import {other}")
            elif top in FORBIDDEN_OUTSIDE.get(room, ()):
                found.append(f"{module}: {room} may not import {top}")
    return found


def sources() -> dict[Path, str]:
    """Every module that a person wrote, by its path."""
    return {path: path.read_text() for path in SOURCE.rglob("*.py") if not path.name.endswith("_pb2.py")}


def test_rooms_import_only_what_they_may() -> None:
    found, seen = [], set()
    for path, source in sources().items():
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        seen.add(room := room_of(parts))
        found += violations(room, str(path), source)
    assert found == []
    assert seen == set(ALLOWED)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("models.vision", "from bitseam.quant import RDFSQ"),
        ("models.vision", "from bitseam.models import language"),
        ("models.language", "import bitseam.models.vision.half"),
        ("streams", "from bitseam import models"),
        ("wire", "import torch.nn"),
        ("transport", "def f():\n    from bitseam.codecs import base"),
        ("train", "import bitseam.serve.server"),
        ("serve", "from bitseam.api.server import Server"),
    ],
)
def test_the_check_can_fail(room: str, source: str) -> None:
    assert violations(room, "planted", source)


def test_no_unsafe_loading() -> None:
    for path, source in sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "marshal", "shelve", "dill"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "eval", "exec", "pickle.loads"}, path


def test_files_and_rooms_stay_small() -> None:
    """Keeps docs/results/house.json as the tree is; commit it with what changed."""
    rooms = defaultdict(list)
    for path, source in sources().items():
        parts = path.relative_to(SOURCE).with_suffix("").parts
        rooms["" if parts == ("__init__",) else room_of(parts)].append(len(source.splitlines()))
    rows = [
        {"room": room or "bitseam", "files": len(lines), "lines": sum(lines), "longest": max(lines)}
        for room, lines in sorted(rooms.items())
    ]
    kept = json.dumps({"rows": rows}, indent=1) + "\n"
    if not HOUSE.exists() or HOUSE.read_text() != kept:
        HOUSE.write_text(kept)
    assert [row for row in rows if row["longest"] > 350 or row["lines"] > 2000] == []
    assert sum(row["lines"] for row in rows) <= 150 * sum(row["files"] for row in rows)


def repeated(texts: Mapping[Path, str], length: int = 6) -> list[str]:
    """Places of runs of `length` lines that stand twice; imports, blank lines and indentation do not count."""
    seen: dict[tuple[str, ...], str] = {}
    found = []
    for path, text in texts.items():
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        lines = [(number, line) for number, line in lines if not line.startswith(("import ", "from "))]
        for start in range(len(lines) - length + 1):
            run = tuple(line for _, line in lines[start : start + length])
            here = f"{path.name}:{lines[start][0]}"
            if (other := seen.setdefault(run, here)) != here:
                found.append(f"{here} repeats {other}")
    return found


def test_no_six_lines_stand_twice() -> None:
    assert repeated(sources()) == []


def test_lines_that_stand_twice_are_found() -> None:
    lines = [f"x{number} = {number}" for number in range(6)]
    texts = {Path("a.py"): "\n".join(lines), Path("b.py"): "def f():\n    " + "\n\n    ".join(lines)}
    assert repeated(texts) == ["b.py:2 repeats a.py:1"]
    assert repeated({path: text.replace("x5", path.name) for path, text in texts.items()}) == []
