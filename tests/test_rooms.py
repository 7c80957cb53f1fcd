"""Who may import whom: the table of the design, enforced on every module's imports."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "bitseam"
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


def test_rooms_import_only_what_they_may() -> None:
    found, seen = [], set()
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        seen.add(room := room_of(parts))
        found += violations(room, str(path), path.read_text())
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


def test_no_unsafe_loading_and_no_large_file() -> None:
    for path in SOURCE.rglob("*.py"):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "marshal", "shelve", "dill"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "eval", "exec", "pickle.loads"}, path
        assert len(source.splitlines()) <= 350 or path.name.endswith("_pb2.py"), path
