"""The house in order: imports run one way and in no circle, files are short, tests stand where their subject does."""

import sys
from graphlib import CycleError, TopologicalSorter

import pytest

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent))

import imports

MOST_LINES = 400
NOT_BELOW = {  # what a package must not import, wherever in it
    "amaml_core": {"bench", "reports", "tests"},
    "bench": {"reports", "tests"},
    "reports": {"amaml_core", "tests", "torch", "torchdiffeq"},
}
CORE = {"amaml_core", "jaxtyping", "torch", "torchdiffeq", *sys.stdlib_module_names}
FILES = [path for folder in (*imports.PACKAGES, "tests") for path in sorted((imports.ROOT / folder).rglob("*.py"))]


def tops(package):
    """(file, top-level package) for all that the files of a package import."""
    mine = {name: path for name, path in imports.modules().items() if name.partition(".")[0] == package}
    return {(path.name, other.partition(".")[0]) for path in mine.values() for other in imports.imported(path)}


@pytest.mark.parametrize("package", imports.PACKAGES)
def test_imports_run_one_way(package):
    assert not {(file, top) for file, top in tops(package) if top in NOT_BELOW[package]}
    assert package in {top for _, top in tops(package)}  # it does see something


def test_the_core_needs_torch_torchdiffeq_jaxtyping_and_nothing_else():
    assert not {(file, top) for file, top in tops("amaml_core") if top not in CORE}


@pytest.mark.parametrize("graph", [imports.edges, imports.rooms])
def test_no_two_files_and_no_two_rooms_need_each_other(graph):
    TopologicalSorter(graph()).prepare()


def test_a_circle_would_be_seen(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from bench.records import Store")
    records = {"bench.records": {"bench.a"}, "bench.a": imports.imported(tmp_path / "a.py") & {"bench.records"}}
    with pytest.raises(CycleError):
        TopologicalSorter(records).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(imports.ROOT).as_posix())
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_pictures_in_contributing_are_of_the_code_as_it_is():
    """``make graph`` draws them anew."""
    text = imports.PAGE.read_text(encoding="utf-8")
    assert imports.page(text) == text
