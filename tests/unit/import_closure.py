"""The files whose code a function can reach, found without running anything.

By names: a function reaches what it names, and so does what it reaches. What only other functions
of a module use does not count: the stage `baseline` loads a calibration set, and the same module
also builds one, with everything that reads documents.
"""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "pruneflow"


class Symbol(NamedTuple):
    """A top-level name of a module's file."""

    file: Path
    name: str


def closure(file: Path, function: str, stop: Callable[[Path], bool]) -> set[Path]:
    """Return the files below PACKAGE that a function reaches, its own left out.

    Args:
        file: where the function is, relative to the current directory.
        function: its name.
        stop: whether a file is neither counted nor followed.
    """
    todo, seen = [Symbol(file, function)], set()
    while todo:
        symbol = todo.pop()
        if symbol in seen or stop(symbol.file):
            continue
        seen.add(symbol)
        todo += _named_by(symbol)
    return {symbol.file for symbol in seen} - {file}


def _named_by(symbol: Symbol) -> Iterator[Symbol]:
    """Yield what a symbol's definition and the code that its module runs at import name."""
    tree = _tree(symbol.file)
    known: dict[str, list[Symbol]] = defaultdict(list)
    for node in tree.body:
        for name in _defines(node):
            known[name].append(Symbol(symbol.file, name))
        for name, found in _imports(node):
            known[name].append(found)
    for node in tree.body:
        if isinstance(node, (ast.Expr, ast.For, ast.With)) or symbol.name in _defines(node):
            for each in ast.walk(node):
                yield from (found for _, found in _imports(each))
                if isinstance(each, ast.Name):
                    yield from known[each.id]
    yield from known[symbol.name]


def _imports(node: ast.AST) -> Iterator[tuple[str, Symbol]]:
    """Yield the names that an import of the package binds, and what they stand for."""
    if isinstance(node, ast.Import):
        assert not any(alias.name.startswith(PACKAGE) for alias in node.names), (
            "use from ... import"
        )
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGE):
        return
    for alias in node.names:
        name = alias.asname or alias.name
        module = _file(f"{node.module}.{alias.name}")
        if module is not None:
            # Which of its names are used is not looked at: all of them.
            for each in [each for part in _tree(module).body for each in _defines(part)]:
                yield name, Symbol(module, each)
        elif (file := _file(str(node.module))) is not None:
            yield name, Symbol(file, alias.name)


def _defines(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [
        each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
    ]


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _file(module: str) -> Path | None:
    place = Path(*module.split("."))
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)
