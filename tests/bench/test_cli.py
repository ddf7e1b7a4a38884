import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.records import Store

TINY = """
description = "a test"
[[grid]]
probe = "error"
problem = "closed_form"
problem_options = { samples = 2 }
method = ["adjoint", "autodiff"]
options = { inner_steps = 5, horizon = 0.5 }
[[grid]]
probe = "counts"
problem = "cosmixture"
problem_options = { shots = 3 }
method = "maml"
options = { inner_steps = 2, inner_lr = 0.1 }
"""


BAD = """def f():
    return 1 / 0
def g():
    import torch, amaml_core as am
    x = torch.zeros(1, 1, 1)
    return am.MetaProblem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss), lambda seed: am.TaskBatch(x, x, x, x)
"""


@pytest.fixture
def cli(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "bad.py").write_text(BAD)

    def run(*arguments):
        command = [sys.executable, "-m", "bench", *arguments]
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")  # no test asks the network
        env = os.environ | nowhere | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "NO_PROXY": ""}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=300)
        assert "Traceback" not in done.stderr
        return done

    return run


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


def test_what_lies_in_the_working_directory_is_not_taken_for_the_benchmark(tmp_path, cli):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    command = [sys.executable, "-P", "-m", "bench", "run", "tiny.toml", "--out", "store", "--only", "maml"]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=300
    )
    assert (done.returncode, "1 ok" in done.stdout) == (0, True), done.stderr


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


def test_the_template_is_a_problem_that_can_be_profiled(cli, tmp_path):
    """A quarter of a minute is not enough for all cells, and the profile keeps to it."""
    (tmp_path / "mine.py").write_text(cli("profile", "--template").stdout)
    began = time.monotonic()
    done = cli("profile", "mine.py:my_problem", "--steps", "2", "--minutes", "0.25", "--out", "store", "--quiet")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 25
    assert ("Use " in done.stdout) != ("No method" in done.stdout)
    assert "Not measured" in done.stdout
    records, _ = Store(tmp_path / "store").read()
    assert {record.cell.problem_options["factory"] for record in records} == {"mine.py:my_problem"}


def test_a_failing_cell_ends_in_exit_code_3(cli):
    done = cli("run", "tiny.toml", "--out", "store", "--set", "timeout_s=0.05")
    assert done.returncode == 3
    assert "3 timeout" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["run", "nosuch"], "nosuch"),
        (["run", "tiny.toml", "--device", "tpu"], "tpu"),
        (["run", "tiny.toml", "--set", "speed=1"], "speed"),
        (["run", "tiny.toml", "--set", "options.speed=1"], "speed"),
        (["run", "tiny.toml", "--set", "seed"], "KEY=VALUE"),
        (["run", "tiny.toml", "--set", "method=mamml"], "mamml"),
        (["run", "tiny.toml", "--only", "nothing"], "nothing"),
        (["run", "tiny.toml", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["run", "tiny.toml", "--nosuch"], "--nosuch"),
        (["list", "cats"], "cats"),
        (["run", "tiny.toml", "--memory", "lots"], "lots"),
        (["run", "tiny.toml", "--cell", "zzz"], "zzz"),
        (["profile"], "--template"),
        (["profile", "nowhere.py:f"], "nowhere.py"),
        (["profile", "bad.py:f"], "line 2"),
        (["profile", "bad.py:g", "--steps", "a"], "'a'"),
        (["profile", "bad.py:g", "--minutes", "0"], "--minutes"),
        (["profile", "bad.py:g", "--inner-lr", "-1"], "inner_lr"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(cli, arguments, culprit):
    done = cli(*arguments)
    assert done.returncode == 2
    assert culprit in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_bad_input(cli):
    done = cli("run", "tiny.toml", "--device", "cuda")
    assert (done.returncode, "--device cpu" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("what", "words"), [("methods", "remat-maml"), ("problems", "closed_form"), ("sweeps", "smoke")]
)
def test_list(cli, what, words):
    done = cli("list", what)
    assert (done.returncode, words in done.stdout) == (0, True)


README = (Path(__file__).parents[2] / "README.md").read_text()
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


def test_train_runs_an_experiment_and_resumes(cli, tmp_path):
    few = {"outer_updates": 4, "train_tasks": 6, "test_tasks": 3, "test_queries": 5, "test_steps": 5}
    small = [arg for name, n in few.items() for arg in ("--set", f"problem_options.{name}={n}")]
    asked = ["train", "regression", "--quick", "--only", "*/cosmixture_training/*maml K=*50shot*", *small]
    first = cli(*asked, "--set", "engine=eager", "--set", "options.inner_steps=3", "--set", "seed=[1, 2]")
    assert first.returncode == 0, first.stderr
    assert "results/train_regression_quick/records.jsonl" in first.stdout
    records, _ = Store(tmp_path / "results" / "train_regression_quick").read()
    assert {record.cell.seed for record in records} == {1, 2}
    assert {record.cell.method for record in records} == {"maml", "fomaml", "imaml", "amaml"}
    assert all(record.metrics["outer_updates"] == 4 for record in records)
    again = cli(*asked, "--set", "engine=eager", "--set", "options.inner_steps=3", "--set", "seed=[1, 2]")
    assert ": 0 cells to run" in again.stdout


def test_missing_data_are_told_once_and_their_cells_skipped(cli, tmp_path):
    done = cli("train", "ratings", "--quick", "--only", "quality/jester/item-mean*", "--out", "s")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be fetched") == 1
    records, _ = Store(tmp_path / "s").read()
    assert {record.status for record in records} == {"skipped"}
    assert all("amaml-bench fetch jester" in record.reason for record in records)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["train", "images"], "Unknown experiment 'images'; choose one of regression, ratings"),
        (["fetch", "netflix"], "Unknown data set 'netflix'; choose one of jester"),
        (["fetch", "jester"], "AMAML_BENCH_DATA"),
    ],
)
def test_what_train_and_fetch_cannot_do_is_told(cli, arguments, culprit):
    done = cli(*arguments)
    assert done.returncode == 2
    assert culprit in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--accept", " "], "--accept needs a reason"),
        (["--accept", "a", "--against", "HEAD"], "use one of them"),
        (["--against", "HEAD", "--blocks", "9"], "with fewer than 10 no case can be called slower"),
        (["--against", "no-such-revision"], "give a revision of this repository"),
    ],
)
def test_gate_refuses_what_makes_no_sense(cli, arguments, sentence):
    done = cli("gate", *arguments, "--out", "g")
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_calibration_is_of_runs_that_are_there(cli):
    done = cli("calibrate", "nothing.json")
    assert done.returncode == 2
    assert "There is no nothing.json" in done.stderr
