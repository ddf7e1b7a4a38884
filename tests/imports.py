"""Which of our files import which: for the tests of the rooms, and the picture of them in CONTRIBUTING.md.

``python tests/imports.py`` writes the picture anew.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("amaml_core", "bench", "reports")
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "```mermaid\n", "```\n"


@cache
def modules() -> dict[str, Path]:
    """Every module and package of ours by its full name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def edges() -> dict[str, set[str]]:
    """What each module imports of ours, wherever the statement stands: type checking and functions included."""
    known = modules()
    return {name: imported(path) & known.keys() for name, path in known.items()}


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of the modules that a file imports, ours or not; those of names in them are there too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively: write the full name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner
            found |= {str(node.module)} if inner - modules().keys() else set()
    return frozenset(found)


def room(name: str) -> str:
    """The folder of a module directly below its package, or the module itself where it stands there."""
    return ".".join(name.split(".")[:2])


def rooms() -> dict[str, set[str]]:
    """What each room uses of others of its own package or of the packages below."""
    found: dict[str, set[str]] = {}
    for name, used in edges().items():
        here = found.setdefault(room(name), set())
        here |= {room(other) for other in used} - {room(name)}
    return found


def picture(package: str) -> str:
    """The rooms of a package as a Mermaid graph: an arrow from who uses to what is used."""
    mine = {name: {other for other in used if _below(other, package)} for name, used in rooms().items()}
    lines = [f"    {_short(a)} --> {_short(b)}" for a in sorted(mine) if _below(a, package) for b in sorted(mine[a])]
    return "\n".join(["flowchart TD", *lines])


def _below(name: str, package: str) -> bool:
    return name.startswith(f"{package}.")


def _short(name: str) -> str:
    return name.partition(".")[2]


def page(text: str) -> str:
    """CONTRIBUTING.md with the pictures as they are now."""
    parts = text.split(BEGIN)
    assert len(parts) == len(PACKAGES) + 1, f"{PAGE.name} has not one picture a package"
    drawn = [
        f"{picture(package)}\n{END}{part.partition(END)[2]}" for package, part in zip(PACKAGES, parts[1:], strict=True)
    ]
    return BEGIN.join([parts[0], *drawn])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
