import re
import shlex
from pathlib import Path

import pytest

from bench.records import Store


def test_a_sweep_runs_resumes_and_says_where_the_records_are(cli, tmp_path):
    first = cli("run", "tiny.toml", "--out", "store")
    assert first.returncode == 0, first.stderr
    assert "store/records.jsonl: 3 of 3 cells: 3 ok." in first.stdout
    records, complaints = Store(tmp_path / "store").read()
    assert [record.status for record in records] == ["ok"] * 3
    assert not complaints
    assert {record.environment["counter_key"].split()[0] for record in records} == {"torch"}
    again = cli("run", "tiny.toml", "--out", "store")
    assert "0 cells to run, 3 already done" in again.stdout
    assert len(Store(tmp_path / "store").read()[0]) == 3


def test_a_dry_run_prints_the_cells_and_runs_none(cli, tmp_path):
    done = cli("run", "tiny.toml", "--out", "store", "--dry-run", "--only", "maml", "--set", "seed=3")
    assert done.returncode == 0
    assert done.stdout.count("todo") == 1
    assert not (tmp_path / "store").exists()


def test_one_cell_runs_in_process_and_leaves_no_record(cli, tmp_path):
    (line,) = [line for line in cli("run", "tiny.toml", "--dry-run").stdout.splitlines() if "counts" in line]
    done = cli("run", "tiny.toml", "--out", "store", "--cell", line.split()[0])
    assert (done.returncode, '"grad_evals": 2' in done.stdout) == (0, True)
    assert not (tmp_path / "store").exists()


def test_a_dry_run_says_how_long_it_will_take_and_learns_from_the_store(cli):
    guess = cli("run", "tiny.toml", "--out", "store", "--dry-run").stdout
    assert "3 cells, 3 to run: 8 s one after the other" in guess
    assert "a guess for 3 of them" in guess
    cli("run", "tiny.toml", "--out", "store", "--only", "maml")
    known = cli("run", "tiny.toml", "--out", "store", "--dry-run", "--set", "seed=1").stdout
    assert "a guess for 2 of them" in known


def test_a_runaway_maml_ends_as_a_row_and_not_as_a_dead_machine(cli, tmp_path):
    grid = 'description = "x"\n[[grid]]\nprobe = "memory"\nproblem = "cosmixture"\nmethod = "maml"\n'
    (tmp_path / "big.toml").write_text(grid + "options = { inner_steps = 5000, inner_lr = 0.01 }\n")
    done = cli("run", "big.toml", "--out", "store", "--memory", "800MiB")
    assert done.returncode == 0
    (record,) = Store(tmp_path / "store").read()[0]
    assert record.status == "oom"
    assert "fewer steps" in record.reason


def test_a_failing_cell_ends_in_exit_code_3(cli):
    done = cli("run", "tiny.toml", "--out", "store", "--set", "timeout_s=0.05")
    assert done.returncode == 3
    assert "3 timeout" in done.stdout


README = (Path(__file__).parents[3] / "README.md").read_text()


COMMANDS = re.findall(r"^\.venv/bin/amaml-bench (run .*?)(?:  +#.*)?$", README, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_sweeps_that_the_readme_shows_can_be_planned(cli, command):
    words = [word for word in shlex.split(command) if word != "--dry-run"]
    if "--cell" in words:
        words = words[: words.index("--cell")]
    done = cli(*words, "--dry-run", "--out", "store")
    assert done.returncode == 0, done.stderr
    assert " to run: " in done.stdout


def test_the_readme_shows_sweeps():
    assert len(COMMANDS) >= 3
