"""What other people bring, by name in a sweep or from an installed package."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import amaml_core as am
from bench import plugins
from bench.harness.versions import benchmark_version, files
from bench.probes import PROBES
from bench.records import Store

EXAMPLE = Path(__file__).parents[2] / "docs" / "plugin"


@pytest.fixture(autouse=True)
def _registries(monkeypatch):
    """As they were, afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "modules", [])
    monkeypatch.setattr(plugins, "folders", [])
    before = {kind: dict(registry) for kind, registry in plugins.REGISTRIES.items()}
    yield
    for kind, registry in plugins.REGISTRIES.items():
        registry.clear()
        registry.update(before[kind])


def test_the_worked_example_runs_in_workers_of_its_own(cli, tmp_path):
    few = ["--set", "problem_options.tasks=2", "--set", "problem_options.samples=1"]
    done = cli("run", str(EXAMPLE / "averaged.toml"), "--out", "store", *few)
    assert done.returncode == 0, done.stderr
    records, _ = Store(tmp_path / "store").read()
    assert {record.cell.method for record in records} == {"averaged-fomaml", "fomaml"}
    assert {record.status for record in records} == {"ok"}
    assert {record.target for record in records} == {"surrogate"}


def test_its_sources_count_in_the_version(tmp_path):
    source = (EXAMPLE / "averaged.py").read_text().replace("averaged-fomaml", "mine")
    (tmp_path / "mine_one.py").write_text(source)
    plugins.load(["mine_one"], [str(tmp_path)])
    assert files("cosmixture", "mine", "error")["mine_one"] == tmp_path / "mine_one.py"
    before = benchmark_version("cosmixture", "mine", "error")
    (tmp_path / "mine_one.py").write_text(source.replace("/ 2", "/ 3"))
    assert benchmark_version("cosmixture", "mine", "error") != before


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nothing_of_the_kind", "cannot be used .ModuleNotFoundError"),
        ("1 / 0", "cannot be used .ZeroDivisionError"),
        ("import amaml_core as am\nam.METHODS['maml'] = am.METHODS['fomaml']", "replaces 'maml' of the methods"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_changes_nothing(source, told, tmp_path):
    name = f"bad_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(am.InputError, match=told):
        plugins.load([name], [str(tmp_path)])
    assert am.METHODS["maml"] is am.MAML


def test_installed_packages_declare_theirs(tmp_path, monkeypatch):
    (tmp_path / "of_a_package.py").write_text(
        "import amaml_core as am\nclass Mine(am.FOMAML):\n    name = 'of-a-package'\n"
        "def measure(problem, cell):\n    raise am.InputError('measured')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    declared = {
        "amaml_bench.methods": [EntryPoint("of-a-package", "of_a_package:Mine", "amaml_bench.methods")],
        "amaml_bench.probes": [EntryPoint("of-a-package", "of_a_package", "amaml_bench.probes")],
    }
    monkeypatch.setattr(plugins, "entry_points", lambda group: declared.get(group, []))
    for _ in "12":
        plugins.load()
    made = am.create_method("of-a-package", inner_steps=1, inner_lr=0.1)
    assert isinstance(made, am.FOMAML)
    assert PROBES["of-a-package"] == "of_a_package"


def test_a_sweep_names_what_is_missing(cli, tmp_path):
    (tmp_path / "mine.toml").write_text((EXAMPLE / "averaged.toml").read_text().replace('"averaged"', '"not_there"'))
    done = cli("run", "mine.toml")
    assert done.returncode == 2
    assert "The plug-in not_there cannot be used" in done.stderr
