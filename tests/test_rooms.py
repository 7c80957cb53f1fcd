"""Who may import whom: the table of the design, enforced on every module's imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "bitseam"
BELOW_PARTIES = {"config", "errors", "halves", "quant", "codecs", "wire", "transport"}
PEOPLE = {"data", "train", "evals", "serve"}
ALLOWED = {
    "errors": set(),
    "config": {"errors"},  # a recipe's faults are errors of ours
    "halves": {"config", "errors"},
    "quant": {"errors"},
    "codecs": {"quant", "errors"},
    "wire": {"errors"},
    "transport": {"wire", "errors"},
    "parties": BELOW_PARTIES,
    **{room: BELOW_PARTIES | {"parties"} for room in PEOPLE},
    "checks": BELOW_PARTIES | {"parties", "data", "evals"},
    "serve": BELOW_PARTIES | {"parties", "checks"},
    "cli": BELOW_PARTIES | {"parties", "checks"} | PEOPLE,
}
FORBIDDEN_OUTSIDE = {"wire": {"torch", "socket", "grpc"}, "transport": {"torch"}}


def violations(room: str, module: str, source: str) -> list[str]:
    """Imports of `source` that `room` may not make."""
    found = []
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
                other = rest.split(".")[0]
                if other not in ALLOWED[room] | {room}:
                    found.append(f"{module}: {room} may not import {other}")
            elif top in FORBIDDEN_OUTSIDE.get(room, ()):
                found.append(f"{module}: {room} may not import {top}")
    return found


def test_rooms_import_only_what_they_may() -> None:
    found, seen = [], set()
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        found += violations(room, str(path), path.read_text())
    assert found == []
    assert seen == set(ALLOWED)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("halves", "from bitseam.quant import RDFSQ"),
        ("halves", "from bitseam import parties"),
        ("wire", "import torch.nn"),
        ("transport", "def f():\n    from bitseam.codecs import base"),
        ("train", "import bitseam.serve.server"),
    ],
)
def test_the_check_can_fail(room: str, source: str) -> None:
    assert violations(room, "planted", source)


def test_the_client_half_never_imports_the_server_half() -> None:
    for one, other in (("client", "server"), ("server", "client")):
        assert f"import bitseam.halves.{other}" not in (source := (SOURCE / "halves" / f"{one}.py").read_text())
        assert f"from bitseam.halves.{other}" not in source


def test_no_unsafe_loading_and_no_large_file() -> None:
    for path in SOURCE.rglob("*.py"):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "marshal", "shelve", "dill"}, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"torch.load", "eval", "exec", "pickle.loads"}, path
        assert len(source.splitlines()) <= 500 or path.name.endswith("_pb2.py"), path
