import pkgutil
import subprocess
import sys

import pytest

import reports
from reports import cli


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["amaml-report", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        return leaving.value.code, *capsys.readouterr()

    return call


def test_build_ends_with_the_path_of_the_page(run, tmp_path, store, make):
    code, out, err = run("build", store(tmp_path / "s", [make()]), "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    assert (tmp_path / "out" / "index.html").is_file()


def test_complaints_go_to_stderr(run, tmp_path, store, make):
    directory = store(tmp_path / "s", [make()])
    with (directory / "records.jsonl").open("a") as file:
        file.write("torn")
    code, _, err = run("build", directory, "--out", tmp_path / "out")
    assert code == 0
    assert "records.jsonl:2" in err


def test_compare_prints_the_table_and_who_is_alone(run, tmp_path, store, make):
    a = store(tmp_path / "a", [make(metrics={"flops": 1}), make(seed=1)])
    code, out, _ = run("compare", a, store(tmp_path / "b", [make(metrics={"flops": 2})]))
    assert code == 0
    assert "| flops | 1 | 2 | 2 |" in out
    assert out.endswith("Cells in both: 1; only in A: 1; only in B: 0.\n")


@pytest.mark.parametrize("arguments", [["build", "nowhere"], ["compare", "nowhere", "."], ["build"], ["unknown"]])
def test_bad_input_is_two_and_no_traceback(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    if "nowhere" in arguments:
        assert err == "amaml-report: There is no directory nowhere; name a store that `amaml-bench run` wrote.\n"


def test_an_unwritable_output_is_named(run, tmp_path, store, make):
    (tmp_path / "file").write_text("")
    code, _, err = run("build", store(tmp_path / "s", [make()]), "--out", tmp_path / "file")
    assert code == 2
    assert str(tmp_path / "file") in err
    assert len(err.splitlines()) == 1


def test_an_interrupt_is_130(run, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("reports.load.load", interrupted)
    assert run("build", tmp_path)[0] == 130


def test_importing_everything_imports_no_torch():
    names = {name for _, name, _ in pkgutil.walk_packages(reports.__path__, "reports.")} - {"reports.__main__"}
    assert {"reports.cli", "reports.analysis.costs", "reports.sections.memory"} <= names
    code = f"import sys; {'; '.join(f'import {name}' for name in names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
