"""Which source files a piece of code rests on, and the hash of the code in them. Nothing is imported to find out."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import sys
import tokenize
from collections.abc import Collection
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

OURS = ("amaml_core", "bench")
DIGITS = 12  # of a hash, in hexadecimal
held: dict[Path, bytes] = {}
"""What is in memory of files that may have changed since, see ``hold``."""
SKIPPED_FOLDERS = ("__pycache__", "venv", "env", "site-packages", "node_modules", "build", "dist")
STATEMENT_BEGINS = (None, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)  # right after one of these


def closure(modules: Collection[str], without: Collection[str] = ()) -> dict[str, Path]:
    """These modules and all that they import, directly or not: name -> file, in the order of the names.

    Only modules of ``OURS`` and of the packages that ``modules`` belong to are followed. A package's ``__init__`` holds
    names, and what looks names up: just those that are used are followed, so that ``am.MetaProblem`` leads to
    ``amaml_core.problem`` and a registry of methods to none of them. What is not written as an import or as an
    attribute of what was imported (``import_module``, ``getattr``, quoted annotations) is not seen.

    Args:
        modules: full names of modules, not of packages.
        without: modules that are left out, and what they import with them.

    Raises:
        ModuleNotFoundError: there is no such module, or no file of it.
    """
    tops = {*OURS, *(name.partition(".")[0] for name in modules)}
    found: dict[str, Path] = {}
    waiting = sorted(set(modules) - set(without))
    while waiting:
        name = waiting.pop()
        path = found[name] = only(name)[name]
        for module, attribute in sorted(_uses(_read(path), name, path.name == "__init__.py")):
            if module.partition(".")[0] in tops or attribute in tops:
                waiting += _homes(module, attribute) - found.keys() - {*without, *waiting}
    return dict(sorted(found.items()))


def beside(script: Path) -> list[Path]:
    """A lone file, and of the Python files in its folder and below those that it imports, directly or not; sorted.

    Environments, caches and hidden files are left out. Where Python will look is not known before the file has had its
    way with the path: a module is any file whose own path ends as the imported name reads, and what a string names,
    for ``import_module``, counts as imported too. What names are put together from is not seen.
    """
    named: dict[str, set[Path]] = {}
    for file in _python_files(script.parent):
        parts = _parts(file, script.parent)
        for i in range(len(parts)):
            named.setdefault(".".join(parts[i:]), set()).add(file)
    found, waiting = {script}, [script]
    while waiting:
        file = waiting.pop()
        meant = _named(file.read_bytes(), ".".join(_parts(file, script.parent)), file.name == "__init__.py")
        new = {other for name in meant for other in named.get(name, ())} - found
        found |= new
        waiting += new
    return sorted(found)


def _python_files(folder: Path) -> set[Path]:
    found = set()
    for here, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".") and name not in SKIPPED_FOLDERS]
        found |= {Path(here, name) for name in names if name.endswith(".py") and not name.startswith(".")}
    return {file for file in found if file.is_file()}


def _parts(file: Path, folder: Path) -> tuple[str, ...]:
    """Of a module's name, as it is called from this folder; none of the package that the folder may be."""
    parts = file.relative_to(folder).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@lru_cache(maxsize=1024)
def _named(source: bytes, name: str, is_package: bool) -> frozenset[str]:
    """All that a module imports or names in a string, and the packages around that; nothing of what cannot be read."""
    try:
        strings = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
        full = {full for _, full in _bindings(source, name, is_package)} | {s for s in strings if isinstance(s, str)}
    except (SyntaxError, ValueError):  # whoever runs it is told
        return frozenset()
    return frozenset(".".join(parts[: i + 1]) for one in full if (parts := one.split(".")) for i in range(len(parts)))


def only(*modules: str) -> dict[str, Path]:
    """These modules alone: name -> file.

    Raises:
        ModuleNotFoundError: there is no such module, or no file of it.
    """
    files = {name: _file(name) for name in sorted(modules)}
    if missing := [name for name, path in files.items() if path is None]:
        raise ModuleNotFoundError(f"There is no file of the module {missing[0]}.", name=missing[0])
    return {name: path for name, path in files.items() if path is not None}


def digest(files: dict[str, Path], *more: str) -> str:
    """The first ``DIGITS`` hex digits of the SHA-256 over these modules' names and code, and more texts."""
    hashed = hashlib.sha256()
    for name, path in files.items():
        hashed.update(name.encode() + b"\0" + code(_read(path)).encode() + b"\0")
    for text in more:
        hashed.update(text.encode() + b"\0")
    return hashed.hexdigest()[:DIGITS]


def hold(packages: Collection[str] = ()) -> None:
    """Have the modules that are loaded by now count as they are now, for the rest of this process.

    Args:
        packages: whose modules they are, besides ``OURS``.
    """
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in {*OURS, *packages} and file and file.endswith(".py"):
            path = Path(file)
            if path not in held and path.is_file():
                held[path] = path.read_bytes()


def _read(path: Path) -> bytes:
    return held[path] if path in held else path.read_bytes()


@lru_cache(maxsize=1024)
def code(source: bytes) -> str:
    """A Python file without what people alone read: comments, docstrings and the lines that hold nothing else."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    text = source.decode(encoding).replace("\r\n", "\n")
    lines: list[str | None] = [*text.split("\n")]
    tokens = _outside_of_strings(text)
    remarks = [token for token in tokens if token.type in (tokenize.COMMENT, tokenize.NL)]
    telling = [token for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]
    before = [None, *(token.type for token in telling)]
    for kind, token, after in zip(before, telling, telling[1:], strict=False):
        alone = kind in STATEMENT_BEGINS and after.type == tokenize.NEWLINE
        remarks += [token] * (token.type == tokenize.STRING and alone)
    for token in sorted(remarks, key=lambda token: token.start, reverse=True):
        (first, start), (last, end) = token.start, token.end
        if first > 1 and (lines[first - 2] or "").endswith("\\"):
            continue  # it ends the statement that goes on here
        if token.type != tokenize.NL:
            left = (lines[first - 1] or "")[:start] + (lines[last - 1] or "")[end:]
            lines[first - 1 : last] = [left.rstrip(), *[None] * (last - first)]
        if not (lines[first - 1] or "").strip():
            lines[first - 1] = None
    return "\n".join(line for line in lines if line is not None).rstrip()


def _outside_of_strings(text: str) -> list[tokenize.TokenInfo]:
    """The tokens of a text; those inside of f-strings, which Python tells from 3.12 on, are left out."""
    begin, end = (getattr(tokenize, name, None) for name in ("FSTRING_START", "FSTRING_END"))
    kept, depth = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        depth -= token.type == end
        if not depth:
            kept.append(token)
        depth += token.type == begin
    return kept


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
    """The local names that a module's imports make, with what each stands for in full; "*" for all of a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                found |= {(alias.asname, alias.name)} if alias.asname else {(top, top), ("", alias.name)}
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


def _homes(module: str, name: str, asked: frozenset[tuple[str, str]] = frozenset()) -> set[str]:
    """The modules that hold what ``module`` calls by this name: none for packages and for what an __init__ defines."""
    full = f"{module}.{name}" if module else name
    if (path := _file(full)) is not None:
        return set() if path.name == "__init__.py" else {full}
    if (path := _file(module)) is None or path.name != "__init__.py":
        return {module} if path else set()
    found = set()
    if (module, name) not in asked:  # two packages may take names of each other
        for local, meant in _bindings(_read(path), module, True):
            inner, _, last = meant.rpartition(".")
            if local == name or name == "*":
                found |= _homes(inner, last, asked | {(module, name)})
            elif local == "*":
                found |= _homes(inner, name, asked | {(module, name)})
    return found


def _file(name: str) -> Path | None:
    """Of a module or package, in Python's own order; None where there is none."""
    top, *rest = name.split(".")
    try:
        spec = find_spec(top) if top else None  # of a top-level name: finds it without importing it
    except ValueError:  # of what was not imported from a file
        spec = None
    places: list[Path] = []
    if spec is not None and rest:
        for folder in spec.submodule_search_locations or ():
            inner = Path(folder).joinpath(*rest)
            places += [inner / "__init__.py", inner.with_name(f"{inner.name}.py")]
    elif spec is not None and spec.origin is not None:
        places.append(Path(spec.origin))
    if (loaded := getattr(sys.modules.get(name), "__file__", None)) is not None:
        places.append(Path(loaded))  # a script, or what was found by other means
    return next((place for place in places if place.suffix == ".py" and place.is_file()), None)
