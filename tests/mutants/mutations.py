"""What a mutant is, and all those of a source file: small changes of its syntax tree, each of one node.

Changed: comparisons, arithmetic, conditions, constants, arguments, slices, returned values; removed: statements,
keyword arguments, entries of tables, decorators, context managers. Left alone, as no behaviour: annotations,
docstrings, logging, representations, and all wording, which is what has a blank in it, stands in an f-string or
belongs to an error. Neither what is an assertion, as `strict=True` of a zip of ours is, nor what is for speed alone, as
`copy=False` and caches are, nor the -1 of a reshape, for which any negative number stands.
"""

from __future__ import annotations

import ast
import copy
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}
PAIRS = [("min", "max"), ("any", "all"), ("floor", "ceil"), ("clamp_min", "clamp_max"), ("amin", "amax")]
PAIRS += [("minimum", "maximum"), ("sum", "mean")]
OPPOSITES = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
COMMUTES = {"max", "min", "maximum", "minimum", "equal"}
OF_TYPES = {"isinstance", "issubclass"}  # with other arguments they only raise
LOGGING = {"debug", "info", "warning", "error", "exception", "warn", "getLogger", "print"}
COMPLAINS = re.compile(r"_?(require|at_most|refuse|check)")  # functions whose strings are the wording of errors
SILENT = {"__repr__", "__str__"}
IDLE_KEYWORDS = {"strict=True", "copy=False"}
KEPT_DECORATORS = re.compile(r"property|staticmethod|classmethod|abstractmethod|overload|cache$|lru_cache")
RESHAPES = {"reshape", "view"}
Body = ast.If | ast.While | ast.For | ast.With | ast.Try | ast.FunctionDef | ast.ClassDef | ast.ExceptHandler


@dataclass(frozen=True)
class Mutant:
    """One change. `was` and `now` are the statement, or its head, without and with it; `nth` of equal ones."""

    file: str
    function: str  # qualified name; of a class, or empty, where it runs at import
    was: str
    now: str
    nth: int
    number: int  # in the file
    lines: tuple[int, int]  # of the statement, the first and the last
    live: bool  # in a function's body: its code can be exchanged after import
    names: tuple[str, ...]  # that the statement defines

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self.file, self.function, self.was, self.now, self.nth


@dataclass(frozen=True)
class Change:
    """Puts `new` where `old` is in its parent, and takes it out again."""

    parent: ast.AST
    field: str
    index: int | None
    old: object
    new: object

    def put(self, value: object) -> None:
        if self.index is None:
            setattr(self.parent, self.field, value)
        else:
            getattr(self.parent, self.field)[self.index] = value


@dataclass(frozen=True)
class Place:
    """Where the walk is."""

    function: tuple[str, ...] = ()
    live: bool = False
    statement: ast.stmt | None = None
    condition: bool = False  # a truth value is all that is asked for
    wording: bool = False


def mutants_of(path: Path, file: str) -> list[Mutant]:
    """Every mutant of the source at `path`, in the order of the text."""
    found, seen = [], Counter[tuple[str, str, str, str]]()
    for number, (change, place) in enumerate(changes(ast.parse(path.read_text()))):
        statement = place.statement
        assert statement is not None
        was = head(statement)
        change.put(change.new)
        now = head(change.new if change.old is statement else statement)
        change.put(change.old)
        name = (file, ".".join(place.function), was, now)
        lines = (statement.lineno, _last_line(statement))
        found.append(Mutant(*name, seen[name], number, lines, place.live, _defined(statement)))
        seen[name] += 1
    return found


def mutated(path: Path, number: int) -> ast.Module:
    """The syntax tree of the source at `path` with its change of that number."""
    tree = ast.parse(path.read_text())
    change = next(change for at, (change, _) in enumerate(changes(tree)) if at == number)
    change.put(change.new)
    return ast.fix_missing_locations(tree)


def head(statement: object) -> str:
    """A statement as text, without the statements in it."""
    assert isinstance(statement, ast.stmt)
    short = copy.copy(statement)
    if isinstance(short, Body):
        short.body = [ast.Pass()]
        for rest in ("orelse", "handlers", "finalbody"):
            if getattr(short, rest, None):
                setattr(short, rest, [] if rest != "handlers" else [ast.ExceptHandler(None, None, [ast.Pass()])])
        return ast.unparse(short).partition("\n    pass")[0]
    return ast.unparse(short)


def changes(tree: ast.Module) -> Iterator[tuple[Change, Place]]:
    """All changes of a tree, the tree as it was whenever one is given."""
    for change, place in _walk(tree, Place()):
        if place.statement is not None and ast.dump(_node(change.old)) != ast.dump(_node(change.new)):
            yield change, place


def _node(part: object) -> ast.AST:
    return (
        part if isinstance(part, ast.AST) else ast.Tuple([*part], ast.Load()) if isinstance(part, list) else ast.Pass()
    )


def _walk(node: ast.AST, place: Place) -> Iterator[tuple[Change, Place]]:
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment", "msg"):
            continue
        inside = _inside(node, field, place)
        if inside is None:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _is_silent(child, inside):
                continue
            if isinstance(node, ast.Call) and _name(node.func) in RESHAPES and ast.unparse(child) == "-1":
                continue
            at = replace(inside, statement=child) if isinstance(child, ast.stmt) else inside
            for new in _alternatives(child, at, node, field):
                yield Change(node, field, index, child, new), at
            if isinstance(child, ast.Call):
                yield from ((change, at) for change in _arguments(child))
            if not isinstance(child, ast.Raise | ast.JoinedStr | ast.Assert):
                yield from _walk(child, at)
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        for index, decorator in enumerate(node.decorator_list):
            if not KEPT_DECORATORS.match(ast.unparse(decorator)):
                rest = node.decorator_list[:index] + node.decorator_list[index + 1 :]
                yield Change(node, "decorator_list", None, node.decorator_list, rest), place


def _inside(node: ast.AST, field: str, place: Place) -> Place | None:
    """Where the parts of that field are; None for those that are left alone."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and field == "body":
        if node.name in SILENT:
            return None
        live = place.live or isinstance(node, ast.FunctionDef)
        return replace(place, function=(*place.function, node.name), live=live, condition=False)
    if isinstance(node, ast.Call) and COMPLAINS.match(_name(node.func)):
        return replace(place, wording=True, condition=False)
    asks = (field == "test" and isinstance(node, ast.If | ast.While | ast.IfExp)) or field == "ifs"
    passes = isinstance(node, ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
    return replace(place, condition=asks or (passes and place.condition))


def _is_silent(node: ast.AST, place: Place) -> bool:
    """Whether nothing in this node is behaviour."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or (isinstance(call := node.value, ast.Call) and _logs(call))
    if isinstance(node, ast.Assign) and not place.live:
        alias = isinstance(node.value, ast.Subscript | ast.BinOp) and not place.function and _is_alias(node.value)
        typing = isinstance(node.value, ast.Call) and _name(node.value.func) == "TypeVar"
        return alias or typing or ast.unparse(node.targets[0]).startswith("__")
    if isinstance(node, ast.keyword):
        return ast.unparse(node) in IDLE_KEYWORDS
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Call) and _logs(node))


def _is_alias(value: ast.expr) -> bool:
    names = {name.id for name in ast.walk(value) if isinstance(name, ast.Name)}
    return any((name[0].isupper() and not name.isupper()) or name in {"int", "str", "dict", "list"} for name in names)


def _logs(call: ast.Call) -> bool:
    return _name(call.func) in LOGGING


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _defined(statement: ast.stmt) -> tuple[str, ...]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return (statement.name,)
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", ast.Pass())]
    parts = [part for target in targets for part in ast.walk(target)]
    return tuple(_name(part) for part in parts if isinstance(part, ast.Name | ast.Attribute))


def _last_line(statement: ast.stmt) -> int:
    """Of a statement's head: a body's lines are not its own."""
    body = getattr(statement, "body", None)
    return max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno or statement.lineno


def _alternatives(node: ast.AST, place: Place, parent: ast.AST, field: str) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    if isinstance(node, ast.stmt):
        yield from _statements(node)
        return
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                yield _with(node, "ops", [*node.ops[:index], other(), *node.ops[index + 1 :]])
    elif isinstance(node, ast.BinOp):
        if type(node.op) in ARITHMETIC:
            yield _with(node, "op", ARITHMETIC[type(node.op)]())
        if isinstance(node.op, ast.MatMult):
            yield _with(_with(node, "left", node.right), "right", node.left)
    elif isinstance(node, ast.BoolOp):
        yield _with(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from _constants(node, place)
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(parent, ast.Call) and field == "func":
        if _name(node) in OPPOSITES and (isinstance(node, ast.Attribute) or _name(node) != "sum"):
            yield _with(node, "attr" if isinstance(node, ast.Attribute) else "id", OPPOSITES[_name(node)])
    elif isinstance(node, ast.Slice):
        for end in ("lower", "upper"):
            if getattr(node, end) is not None:
                yield _with(node, end, None)
    elif isinstance(node, ast.Dict) and len(node.values) > 1:
        for index in range(len(node.values)):
            yield ast.Dict(_without(node.keys, index), _without(node.values, index))
    elif isinstance(node, ast.Set) or (isinstance(node, ast.Tuple | ast.List) and field in ("iter", "comparators")):
        for index in range(len(node.elts) if len(node.elts) > 1 else 0):
            yield _with(node, "elts", _without(node.elts, index))
    if place.condition and isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.NamedExpr):
        yield ast.UnaryOp(ast.Not(), node)


def _statements(node: ast.stmt) -> Iterator[ast.stmt]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Expr | ast.AugAssign | ast.Raise | ast.Delete) or any(
        isinstance(target, ast.Attribute | ast.Subscript) for target in targets
    ):
        yield ast.Pass()
    elif isinstance(node, ast.With) and not any(item.optional_vars for item in node.items):
        yield ast.If(ast.Constant(True), node.body, [])
    elif isinstance(node, ast.Break | ast.Continue):
        yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()
    if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        yield _with(node, "op", ARITHMETIC[type(node.op)]())


def _constants(node: ast.Constant, place: Place) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, float):
        yield ast.Constant(value * 2 or 1.0)
    elif isinstance(value, bytes):
        yield ast.Constant(b"mutated")
    elif isinstance(value, str) and not place.wording and not re.search(r"\s", value):
        yield ast.Constant("mutated")


def _arguments(call: ast.Call) -> Iterator[Change]:
    """Positional ones exchanged, or without the last; and without each of the keywords."""
    args, keywords, name = call.args, call.keywords, _name(call.func)
    if len(args) > 1 and not COMPLAINS.match(name) and name not in OF_TYPES:
        if name not in COMMUTES and not any(isinstance(arg, ast.Starred) for arg in args[:2]):
            yield Change(call, "args", None, args, [args[1], args[0], *args[2:]])
        yield Change(call, "args", None, args, args[:-1])
    for index, keyword in enumerate(keywords):
        if ast.unparse(keyword) not in IDLE_KEYWORDS:
            yield Change(call, "keywords", None, keywords, _without(keywords, index))


def _with(node: Any, field: str, value: object) -> Any:
    other = copy.copy(node)
    setattr(other, field, value)
    return other


def _without(parts: list[Any], index: int) -> list[Any]:
    return parts[:index] + parts[index + 1 :]
