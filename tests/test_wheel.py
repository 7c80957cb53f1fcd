"""What `pip install` of the built wheel gives, in an environment and a folder of its own."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import Tiny
from tiny_run import write_tiny_run

from bitseam.cli.machine import free_port
from bitseam.cli.main import app

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWNERS = packages_distributions()
IMPORT_ALL = """
import importlib, pkgutil, bitseam
for module in pkgutil.walk_packages(bitseam.__path__, "bitseam."):
    if not module.name.startswith("bitseam.testing"):
        importlib.import_module(module.name)
print(bitseam.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes beside what it builds."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(SOURCE, copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(copy / "dist")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    named = zipfile.ZipFile(wheel).namelist()
    own = {name for name in named if ".dist-info/" not in name}
    there = (path for path in (SOURCE / "bitseam").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert own == {str(path.relative_to(SOURCE)) for path in there}
    assert {"bitseam/recipes/demo.toml", "bitseam/py.typed"} <= own


def test_it_has_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith("entry_points.txt"))
        points = ConfigParser()
        points.read_string(opened.read(name).decode())
    assert dict(points["console_scripts"]) == {"bitseam": "bitseam.cli.main:main"}


def test_recipes_come_from_it(wheel: Path, tmp_path: Path) -> None:
    """By name and by `bitseam new`, in an empty folder, with the wheel's own files and not those of the source."""
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from bitseam.config import load_recipe\n"
        "from bitseam.cli.new import run_new\n"
        "run_new('mine', None, None, 'train.jsonl', ''); print(load_recipe('mine.toml').name)\n"
        "from bitseam.config import shipped_recipes\n"
        "print(*(load_recipe(name).name for name in shipped_recipes()), *shipped_recipes().values())"
    )
    said = _run([sys.executable, "-I", "-c", code], tmp_path / "empty")
    shipped = [path.stem for path in sorted((SOURCE / "bitseam" / "recipes").glob("*.toml"))]
    inside = [f"{tmp_path}/site/bitseam/recipes/{name}.toml" for name in shipped]
    assert said.splitlines()[-2:] == ["mine", " ".join([*shipped, *inside])]


def test_what_it_imports_is_declared() -> None:
    for path in (SOURCE / "bitseam").rglob("*.py"):
        extra = ["testing"] if "testing" in path.relative_to(SOURCE).parts else []
        assert undeclared(path.read_text(), declared(*extra)) == set(), path


def test_what_is_not_declared_is_found() -> None:
    assert undeclared("import pytest", declared()) == {"pytest"}
    assert undeclared("import pytest", declared("testing")) == set()
    assert undeclared("def f():\n    from urllib3.util import Retry\n    import os, numpy.linalg", declared()) == {
        "urllib3"
    }


def declared(*extras: str) -> set[str]:
    """Distributions that pyproject.toml asks for, with those of some extras."""
    wanted = [*PROJECT["dependencies"], *(one for extra in extras for one in PROJECT["optional-dependencies"][extra])]
    return {_normal(re.split(r"[<>=!~;\[ ]", one)[0]) for one in wanted}


def undeclared(source: str, allowed: set[str]) -> set[str]:
    """Packages that a module imports, anywhere in it, and that no allowed distribution has."""
    own = {*sys.stdlib_module_names, "bitseam"}
    names = {name.partition(".")[0] for name in _imported(ast.walk(ast.parse(source)))}
    return {name for name in names - own if not allowed & {_normal(owner) for owner in OWNERS.get(name, ())}}


def _imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(command: list[str], folder: Path) -> str:
    """What a command prints, in a folder where it has its cache, too; it does not see the source."""
    settings = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "COLUMNS")}
    settings["BITSEAM_CACHE"] = str(folder / "cache")
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_empty_environment_has_every_command(wheel: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Installed with the pinned versions from the registry, which takes some minutes and 2 GB."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs, folder = tmp_path / "venv" / "bin", tmp_path / "empty"
    folder.mkdir()
    _run([str(programs / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt"), "torch", str(wheel)], folder)
    assert _run([str(programs / "python"), "-c", IMPORT_ALL], folder).startswith(str(tmp_path / "venv"))
    bitseam = str(programs / "bitseam")
    assert "new" in _run([bitseam, "--help"], folder)
    for command in app.registered_commands:
        assert command.callback is not None
        _run([bitseam, command.callback.__name__, "--help"], folder)
    assert "stories15m" in _run([bitseam, "assets", "--list"], folder)

    write_tiny_run(folder, tiny).unlink()
    models = ["--vision", tiny.vision, "--language", tiny.language]
    _run([bitseam, "new", "mine", *models, "--train", "rows.jsonl", "--test", "rows.jsonl"], folder)
    address = ["--set", f"network.address=localhost:{free_port()}"]
    assert "nothing is wrong" in _run([bitseam, "check", "mine.toml", *address], folder)
