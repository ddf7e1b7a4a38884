"""The house in order: imports run one way and in no circle, files are short, tests stand where their subject does."""

import importlib.util
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

# by its path: the folder of the tests on Python's own would make packages of tests/bench and its neighbours
spec = importlib.util.spec_from_file_location("imports", Path(__file__).with_name("imports.py"))
imports = importlib.util.module_from_spec(spec)
spec.loader.exec_module(imports)

MOST_LINES = 400
SUITES = {  # of tests, about all of a room or of a package
    "test_rooms",
    "amaml_core/test_doctests",
    "amaml_core/methods/test_contract",
    "amaml_core/methods/test_first_order",
    "amaml_core/methods/test_registry",
    "bench/peers/test_peers",
    "reports/sections/test_contract",
}
LARGE = 100  # lines, from which on a module has tests of its own name, or is named here with those that it has
TESTED_BY = {
    "amaml_core/engine/block_matrices": "amaml_core/engine/test_blocks",
    "amaml_core/engine/block_operators": "amaml_core/engine/test_blocks",
    "amaml_core/methods/base": "amaml_core/methods/test_contract",
    "amaml_core/ode/scheme": "amaml_core/ode/test_solve",
    "bench/peers/base": "bench/peers/test_peers",
    "bench/peers/eager_loop": "bench/peers/test_peers",
    "bench/peers/jax_peers": "bench/peers/test_peers",
    "reports/sections/ratings": "reports/sections/test_training",
}
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


@pytest.mark.parametrize(
    "late", ["def f():\n    from bench import worker", "if TYPE_CHECKING:\n    import bench.worker"]
)
@pytest.mark.parametrize("graph", ["edges", "rooms"])
def test_a_circle_would_be_seen(tmp_path, monkeypatch, late, graph):
    files = {"bench.worker": "from bench.other.inner import x", "bench.other.inner": f"x = 1\n{late}"}
    paths = {name: tmp_path / f"{name}.py" for name in files}
    for name, path in paths.items():
        path.write_text(files[name])
    monkeypatch.setattr(imports, "modules", lambda: paths)
    with pytest.raises(CycleError):
        TopologicalSorter(getattr(imports, graph)()).prepare()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(imports.ROOT).as_posix())
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_pictures_in_contributing_are_of_the_code_as_it_is():
    """``make graph`` draws them anew."""
    text = imports.PAGE.read_text(encoding="utf-8")
    assert imports.page(text) == text


def stem(path, folder=""):
    return path.relative_to(imports.ROOT / folder).with_suffix("").as_posix()


def test_each_test_stands_where_its_subject_does():
    subjects = {stem(path).replace("__main__", "main") for path in imports.modules().values()}
    for path in (imports.ROOT / "tests").rglob("test_*.py"):
        name = stem(path, "tests")
        assert name in SUITES or name.replace("test_", "") in subjects, f"{name} has no subject in its place"


def test_each_large_module_has_its_tests():
    tests = {stem(path, "tests") for path in (imports.ROOT / "tests").rglob("test_*.py")}
    for path in imports.modules().values():
        folder, _, module = stem(path).rpartition("/")
        own = TESTED_BY.get(stem(path), f"{folder}/test_{module.strip('_')}")
        assert own in tests or len(path.read_text().splitlines()) < LARGE, f"{stem(path)} has no tests of its own"
