"""What makes a row stale, and what does not; whose code it is."""

import ast
import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

import bench
from amaml_core import METHODS, InputError
from bench import sources
from bench.harness import versions
from bench.harness.versions import benchmark_version, git_revision
from bench.peers import PEERS
from bench.probes import PROBES
from bench.problems import PROBLEMS

ROOT = Path(bench.__file__).parents[1]
PROBLEM_NAMES = ("cosmixture", "cosmixture_training", "custom", "movielens_1m", "synthetic_images")
METHOD_NAMES = ("amaml", "imaml", "maml", "diffrax", "jax-maml", "loop-maml")
KINDS = [*product(PROBLEM_NAMES, METHOD_NAMES, PROBES), ("closed_form", "adjoint", "error")]
ASK = """
import json, sys
from bench import sources
own = sources.only(sys.argv[1])
kinds, forms = json.loads(sys.argv[2]), json.loads(sys.argv[3])
rests = {root: sources.closure([root], forms) for root in {root for roots in kinds for root in roots}}
files = [dict(sorted((own | {k: v for root in roots for k, v in rests[root].items()}).items())) for roots in kinds]
print(json.dumps([[sorted(one), sources.digest(one)] for one in files]))
"""


def roots(problem, method, probe):
    named = [registry[method] for registry in (METHODS, PEERS) if method in registry]
    return [f"bench.probes.{probe}", *(one.__module__ for one in (PROBLEMS[problem], *named))]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of our packages; the returned call changes files of it and tells the kinds of cells that are stale then.

    Each change is (file, old text, new text); a new file has no old text.
    """
    root = tmp_path_factory.mktemp("copy")
    for package in sources.OURS:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    asked = [versions.WORKER, json.dumps([roots(*kind) for kind in KINDS]), json.dumps(versions.FORMS)]

    def ask():
        command = [sys.executable, "-P", "-c", ASK, *asked]
        done = subprocess.run(command, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    before = ask()
    for kind, (names, _) in zip(KINDS, before, strict=True):
        assert names == sorted(versions.files(*kind))  # what is asked here is what a version is made of

    def stale(*changes):
        kept = {}
        for file, old, new in changes:
            path = root / file
            kept[path] = path.read_text() if old else None
            assert old in (kept[path] or "")
            path.write_text(kept[path].replace(old, new, 1) if old else new)
        after = ask()
        for path, text in kept.items():
            path.unlink() if text is None else path.write_text(text)
        return {kind for kind, a, b in zip(KINDS, before, after, strict=True) if a != b}

    return stale


def test_only_a_change_makes_stale(copy):
    assert copy() == set()
    assert copy(("amaml_core/errors.py", "import math\n", "import math\nNEW = 1\n")) == set(KINDS)


METHOD = '''
from dataclasses import dataclass
from amaml_core.methods.maml import MAML


@dataclass(frozen=True, kw_only=True)
class Newcomer(MAML):
    """A method more."""

    name = "newcomer"
'''
PROBLEM = '''
from dataclasses import dataclass
from bench.problems.regression import CosMixture


@dataclass(frozen=True)
class Newcomer(CosMixture):
    """A problem more."""

    text = "a problem more"
'''


def test_a_new_method_problem_metric_and_docstring_make_nothing_stale(copy):
    """All at once, as a change would bring them; comments in what defines every number among them."""
    method, problem = "from amaml_core.methods.newcomer import Newcomer", "from bench.problems.newcomer import Newcomer"
    registry, metrics = "METHODS: dict[str, type[MetaGradientMethod]] = {", "METRICS: dict[str, Metric] = {"
    changed = copy(
        ("amaml_core/methods/newcomer.py", "", METHOD),
        ("amaml_core/methods/__init__.py", registry, f"{method}\n{registry}\n    'newcomer': Newcomer,"),
        ("amaml_core/__init__.py", "__all__ = [", f"{method}\n__all__ = ["),
        ("bench/problems/newcomer.py", "", PROBLEM),
        ("bench/problems/__init__.py", "PROBLEMS: dict", f"{problem}\nPROBLEMS: dict"),
        ("bench/records.py", metrics, f"{metrics}\n    'new_bytes': None,"),
        ("bench/harness/runner.py", "SHARED_WORKERS = ", "NEW = 1\nSHARED_WORKERS = "),
        ("amaml_core/problem.py", '"""A model and its losses', '# a comment\n"""A model, its losses'),
        ("amaml_core/ode/adjoint.py", '"""Backward solves', '"""Solves backward'),
    )
    assert changed == set()


def of(problems=PROBLEM_NAMES, methods=METHOD_NAMES, probes=PROBES):
    return set(product(problems, methods, probes))


CLOSED_FORM = {KINDS[-1]}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("amaml_core/methods/maml", of(methods=["maml"])),
        ("amaml_core/ode/adaptive", of(methods=["amaml"]) | CLOSED_FORM),
        ("amaml_core/linear_solve", of(methods=["imaml"])),
        ("amaml_core/engine/inductor", set(KINDS)),
        ("amaml_core/adaptation", of(probes=["quality"])),
        ("bench/problems/images", of(["synthetic_images"])),
        ("bench/problems/data", of(["movielens_1m"])),
        ("bench/probes/memory", of(probes=["memory", "regression"])),
        (
            "bench/probes/oracles",
            of(probes=["error", "honesty", "references", "regression", "tolerance"]) | CLOSED_FORM,
        ),
        ("bench/peers/jax_model", of(methods=["diffrax", "jax-maml"])),
        ("bench/peers/base", of(methods=["diffrax", "jax-maml", "loop-maml"])),
        ("bench/harness/worker", set(KINDS)),
        ("bench/harness/environment", set()),
        ("bench/spec", set()),
        ("bench/advise/advice", set()),
    ],
)
def test_a_changed_file_makes_stale_what_rests_on_it_and_nothing_else(copy, file, expected):
    first = "from __future__ import annotations\n"
    assert copy((f"{file}.py", first, f"{first}NEW = 1\n")) == expected


@pytest.mark.parametrize("kind", KINDS[:: len(PROBES) + 1], ids=str)
def test_what_makes_a_number_is_imported_at_the_top(kind):
    """So that a worker has it in memory before it reads the files for the version."""
    behind = versions.files(*kind)
    del behind[versions.WORKER]  # which waits with torch until its memory is limited
    for name, path in behind.items():
        for function in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                inside = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
                named = [getattr(node, "module", None) or node.names[0].name for node in inside]
                assert not [one for one in named if one.partition(".")[0] in sources.OURS], name


@pytest.mark.parametrize(("method", "package"), [(name, one) for name, peer in PEERS.items() for one in peer.packages])
def test_a_peers_own_packages_are_part_of_its_version(monkeypatch, method, package):
    kinds = [("cosmixture", name, "time") for name in (method, "loop-maml", "maml")]
    before = [benchmark_version(*kind) for kind in kinds]
    known = versions.installed
    monkeypatch.setattr(versions, "installed", lambda name: "0.0" if name == package else known(name))
    assert [benchmark_version(*kind) != old for kind, old in zip(kinds, before, strict=True)] == [True, False, False]


@pytest.mark.parametrize("name", ["jax-maml", "loop-maml"])
def test_a_name_that_stands_for_another_class_of_the_same_file_is_another_version(monkeypatch, name):
    before = benchmark_version("cosmixture", name, "time")
    other = {"jax-maml": "jax-remat-maml", "loop-maml": "loop-fomaml"}[name]
    monkeypatch.setitem(PEERS, name, PEERS[other])
    assert benchmark_version("cosmixture", name, "time") != before
    assert benchmark_version("cosmixture", "maml", "time") != benchmark_version("alpine", "maml", "time")


def test_a_method_of_a_script_counts_with_the_script_and_one_of_no_file_is_refused(monkeypatch, tmp_path):
    """As from a notebook: it is nowhere that a worker could import it from."""
    script = tmp_path / "script.py"
    script.write_text("from amaml_core.methods.maml import MAML\n")
    monkeypatch.setattr(METHODS["maml"], "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # pytest's own, where there is no xdist
    first = benchmark_version("cosmixture", "maml", "time")
    script.write_text("from amaml_core.methods.maml import MAML\nCHANGED = 1\n")
    assert benchmark_version("cosmixture", "maml", "time") != first
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    with pytest.raises(InputError, match="no file of the module __main__"):
        benchmark_version("cosmixture", "maml", "time")


# whose code it is


def git(directory, *arguments):
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run(["git", "-C", str(directory), *me, *arguments], check=True, capture_output=True)


def commit(directory):
    git(directory, "init", "-q")
    git(directory, "add", ".")
    git(directory, "commit", "-qm", "one")


def unpack(directory):
    for package in sources.OURS:
        (directory / package).mkdir(parents=True)
        (directory / package / "__init__.py").write_text("")
    (directory / "README.md").write_text("")
    return directory


@pytest.fixture
def ours(tmp_path):
    root = unpack(tmp_path / "ours")
    commit(root)
    return root


def test_the_revision_is_the_commit_of_our_sources(ours):
    head = subprocess.run(["git", "-C", str(ours), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert git_revision(ours) == head[:12]
    git(ours, "tag", "v1")
    (ours / "README.md").write_text("what makes no number")
    assert git_revision(ours) == head[:12]


@pytest.mark.parametrize("change", ["edited", "new", "deleted", "staged"])
def test_sources_that_differ_from_the_commit_are_dirty(ours, change):
    file = ours / "bench" / "__init__.py"
    if change == "deleted":
        file.unlink()
    else:
        (file.with_name("new.py") if change == "new" else file).write_text("x = 1")
    if change == "staged":
        git(ours, "add", ".")
    assert git_revision(ours).endswith("+dirty")


def test_the_environment_names_no_other_repository(ours, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    commit(tmp_path / "other")
    expected = git_revision(ours)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_COMMON_DIR", str(tmp_path / "other" / ".git"))
    assert git_revision(ours) == expected


def test_what_configures_git_is_kept(ours, monkeypatch):
    """As containers do, whose checkouts belong to another user: here it names a setting that git cannot read."""
    for name, value in {"COUNT": "1", "KEY_0": "core.bare", "VALUE_0": "neither"}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert git_revision(ours) == ""


@pytest.mark.parametrize("place", ["lib/site-packages", "vendor/amaml-bench", "."])
@pytest.mark.parametrize("kept", [False, True])
def test_somebody_elses_repository_is_not_ours(tmp_path, place, kept):
    """Installed or unpacked below it, committed or not; at its top it is theirs as long as it is not committed."""
    (tmp_path / "theirs.py").write_text("")
    if kept and place != ".":
        unpack(tmp_path / place)
        commit(tmp_path)
    else:
        commit(tmp_path)
        unpack(tmp_path / place)
    assert git_revision(tmp_path / place) == ""


def test_without_a_repository_or_git_there_is_no_revision(tmp_path, ours, monkeypatch):
    assert git_revision(unpack(tmp_path / "plain")) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(ours) == ""
