"""Imports run one way only, and the core stays small in what it leans on."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "amaml_core": {"bench", "reports", "tests"},
    "bench": {"reports", "tests"},
    "reports": {"amaml_core", "tests", "torch", "torchdiffeq"},
}


def imported(package: str) -> set[tuple[str, str]]:
    """(file, top-level package) for every import in the package's source, wherever in a file it stands."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module] if node.level == 0 else [package]
            found |= {(str(path.relative_to(ROOT)), name.split(".")[0]) for name in names}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    assert not {(file, name) for file, name in imported(package) if name in FORBIDDEN[package]}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_the_check_sees_something(package):
    assert {name for _, name in imported(package)} & {package}


def test_the_core_needs_torch_torchdiffeq_jaxtyping_and_nothing_else():
    allowed = {"torch", "torchdiffeq", "jaxtyping", "amaml_core", *sys.stdlib_module_names}
    assert not {(file, name) for file, name in imported("amaml_core") if name not in allowed}
