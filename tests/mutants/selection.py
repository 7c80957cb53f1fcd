"""Which tests to try on a mutant: those that run its line, as the baseline saw them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from baseline import ROOT, SOURCE, Baseline
from mutations import Mutant

BUDGET = 10.0  # seconds of tests, by their usual time, for one mutant


@dataclass(frozen=True)
class Function:
    file: str
    name: str  # qualified
    first: int
    last: int
    names: frozenset[str]  # that it mentions


@dataclass(frozen=True)
class Selection:
    """Of one room: its files, relative to the package, and their baseline."""

    files: tuple[str, ...]
    known: Baseline

    def runs_at_import(self, mutant: Mutant) -> bool:
        """Whether exchanging a function's code after the import may be too late."""
        first, last = mutant.lines
        early = self.known.imported.get(mutant.file, ())
        return not mutant.live or any(first <= line <= last for line in early)

    def running(self, mutant: Mutant) -> tuple[str, ...]:
        """Tests that run the mutated line after the import."""
        places = self.known.covering(mutant.file, *mutant.lines)
        if not places:  # perhaps compiled by numba or torch, unseen by coverage: whatever runs what is around it
            for function in self._functions:
                if function.file == mutant.file and mutant.function.startswith(f"{function.name}."):
                    places |= self.known.covering(function.file, function.first, function.last)
        return self._affordable(places)

    def using(self, mutant: Mutant) -> tuple[str, ...]:
        """Of what runs at import: tests of functions that mention what the statement defines, or else of the whole
        file; and tests in files that mention it, or its class, since importing it runs no line."""
        if not self.runs_at_import(mutant):
            return self.running(mutant)
        own_name = mutant.function.rpartition(".")[2]
        names, before = {own_name} if mutant.live else set(mutant.names), 0
        while len(names) > before:
            before = len(names)
            names |= {name for defined, used in self._definitions if used & names for name in defined}
        found: set[int] = set()
        for function in self._functions:
            own = function.file == mutant.file
            defines = own and function.name == f"{mutant.function}.{'.'.join(mutant.names)}".strip(".")
            if defines or names & function.names or (own and (mutant.live or not names)):
                found |= self.known.covering(function.file, function.first, function.last)
        names |= set() if mutant.live else set(mutant.function.split("."))
        told = {place for place, test in enumerate(self.known.tests) if names & _words(test.partition("::")[0])}
        return self._affordable(found | told)

    def _affordable(self, places: set[int]) -> tuple[str, ...]:
        """In the order to try them, as many as fit into the budget."""
        chosen, spent, names = [], 0.0, list(self.known.tests)
        for place in sorted(places):
            spent += self.known.tests[names[place]]
            if spent > BUDGET:
                break
            chosen.append(names[place])
        return tuple(chosen)

    @cached_property
    def _functions(self) -> list[Function]:
        found = []

        def walk(file: str, node: ast.AST, name: str) -> None:
            for part in ast.iter_child_nodes(node):
                inner = f"{name}.{part.name}".strip(".") if isinstance(part, ast.FunctionDef | ast.ClassDef) else name
                if isinstance(part, ast.FunctionDef):
                    first, last = part.body[0].lineno, part.end_lineno or part.lineno
                    found.append(Function(file, inner, first, last, _mentioned(part)))
                walk(file, part, inner)

        for file in self.files:
            walk(file, ast.parse((SOURCE / file).read_text()), "")
        return found

    @cached_property
    def _definitions(self) -> list[tuple[frozenset[str], frozenset[str]]]:
        """Names that statements of modules and classes define, with those that they mention."""
        found = []
        for file in self.files:
            tree = ast.parse((SOURCE / file).read_text())
            for block in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
                for statement in block.body:
                    if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                        found.append((_mentioned(statement) - _mentioned(statement.value), _mentioned(statement.value)))
        return found


@cache
def _words(test_file: str) -> frozenset[str]:
    return _mentioned(ast.parse((ROOT / test_file).read_text()))


def _mentioned(node: ast.AST) -> frozenset[str]:
    parts = [part for part in ast.walk(node) if isinstance(part, ast.Name | ast.Attribute)]
    return frozenset(part.id if isinstance(part, ast.Name) else part.attr for part in parts)


def sources(room: str) -> tuple[str, ...]:
    """Files of a room, relative to the package, without what is generated."""
    return tuple(
        str(path.relative_to(SOURCE))
        for path in sorted(Path(SOURCE, room).rglob("*.py"))
        if not path.name.endswith("_pb2.py")
    )
