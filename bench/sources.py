"""Which source files a piece of code rests on, and the hash of the code in them. Nothing is imported to find out."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Collection
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

OURS = ("amaml_core", "bench")
DIGITS = 12  # of a hash, in hexadecimal
STATEMENT_BEGINS = (tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)  # right after one of these


def closure(modules: Collection[str], without: Collection[str] = ()) -> dict[str, Path]:
    """These modules and all that they import, directly or not: name -> file, in the order of the names.

    Only modules of ``OURS`` and of the packages that ``modules`` belong to are followed. Of a package's ``__init__``,
    which holds names only, just those that are used are: ``am.MetaProblem`` leads to ``amaml_core.problem``, and a
    registry of methods to none of them.

    Args:
        modules: full names of modules, not of packages.
        without: modules that are left out, and what they import with them.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    tops = {*OURS, *(name.partition(".")[0] for name in modules)}
    found: dict[str, Path] = {}
    waiting = sorted(set(modules) - set(without))
    while waiting:
        name = waiting.pop()
        path = only(name)[name]
        found[name] = path
        for module, attribute in _uses(path.read_bytes(), name, path.name == "__init__.py"):
            if module.partition(".")[0] in tops and (home := _home(module, attribute)):
                waiting += {home} - found.keys() - {*without, *waiting}
    return dict(sorted(found.items()))


def only(*modules: str) -> dict[str, Path]:
    """These modules alone: name -> file.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    files = {name: _file(name) for name in sorted(modules)}
    if missing := [name for name, path in files.items() if path is None]:
        raise ModuleNotFoundError(f"There is no module {missing[0]}.", name=missing[0])
    return {name: path for name, path in files.items() if path is not None}


def digest(files: dict[str, Path]) -> str:
    """The first ``DIGITS`` hex digits of the SHA-256 over these modules' names and their code; see ``code``."""
    hashed = hashlib.sha256()
    for name, path in files.items():
        hashed.update(name.encode() + b"\0" + code(path.read_bytes()) + b"\0")
    return hashed.hexdigest()[:DIGITS]


@lru_cache(maxsize=1024)
def code(source: bytes) -> bytes:
    """A Python file without what people alone read: comments, docstrings and the lines that hold nothing else."""
    lines: list[str | None] = [*source.decode().split("\n")]
    tokens = list(tokenize.tokenize(io.BytesIO(source).readline))
    telling = [token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]
    docstrings = [
        token
        for before, token, after in zip(telling, telling[1:], telling[2:], strict=False)
        if token.type == tokenize.STRING and before.type in STATEMENT_BEGINS and after.type == tokenize.NEWLINE
    ]
    remarks = [*docstrings, *(token for token in tokens if token.type in (tokenize.COMMENT, tokenize.NL))]
    for token in sorted(remarks, key=lambda token: token.start, reverse=True):
        (first, start), (last, end) = token.start, token.end
        if token.type != tokenize.NL:
            left = (lines[first - 1] or "")[:start] + (lines[last - 1] or "")[end:]
            lines[first - 1 : last] = [left.rstrip(), *[None] * (last - first)]
        if not (lines[first - 1] or "").strip():
            lines[first - 1] = None
    return "\n".join(line for line in lines if line is not None).rstrip().encode()


@lru_cache(maxsize=1024)
def _uses(source: bytes, name: str, is_package: bool) -> frozenset[tuple[str, str]]:
    """What a module uses of others, wherever in it: pairs of a module and a name in it, which may be a module too."""
    bound = _bindings(source, name, is_package)
    meant = {full for _, full in bound}
    for node in ast.walk(ast.parse(source)):
        first, _, rest = _dotted(node).partition(".")
        meant |= {f"{full}.{rest}" for local, full in bound if rest and local == first}
    return frozenset((full.rpartition(".")[0], full.rpartition(".")[2]) for full in meant)


@lru_cache(maxsize=1024)
def _bindings(source: bytes, name: str, is_package: bool) -> frozenset[tuple[str, str]]:
    """The local names that a module's imports make, with what each stands for in full."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found.add((alias.asname or top, alias.name if alias.asname else top))
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")
            package = parts[: len(parts) - node.level + is_package] if node.level else []
            for alias in node.names:
                full = ".".join(filter(None, [*package, node.module, alias.name]))
                found.add((alias.asname or alias.name, full))
    return frozenset(found)


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` as written; empty for anything else."""
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def _home(module: str, name: str) -> str:
    """The module that holds what ``module`` calls by this name; empty for packages and what stands in an __init__."""
    if (path := _file(f"{module}.{name}")) is not None:
        return "" if path.name == "__init__.py" else f"{module}.{name}"
    if (path := _file(module)) is None or path.name != "__init__.py":
        return module if path else ""
    full = dict(_bindings(path.read_bytes(), module, True)).get(name, "")
    return _home(*full.rpartition(".")[::2]) if full else ""


def _file(name: str) -> Path | None:
    """Of a module or package; None where there is none."""
    top, *rest = name.split(".")
    spec = find_spec(top)  # of a top-level name: finds it without importing it
    if spec is None or spec.origin is None or (rest and not spec.submodule_search_locations):
        return None
    path = Path(spec.origin)
    if not rest:
        return path
    inner = path.parent.joinpath(*rest)
    candidates = (inner.with_name(f"{inner.name}.py"), inner / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)
