import subprocess
import sys

import pytest
import torch

from bench.problems.data import DATA
from bench.spec import EXPERIMENTS


def test_what_lies_in_the_working_directory_is_not_taken_for_the_benchmark(shell, desk):
    (desk / "bench").mkdir()
    (desk / "bench" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = shell("run", "tiny.toml", "--out", "store", "--only", "maml")
    assert (done.returncode, "1 ok" in done.stdout) == (0, True), done.stderr


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


HEAVY = ("torch", "numpy", "scipy", "pandas", "psutil", "amaml_core")  # typer itself takes pydantic
HELP = f"""
import sys
from bench.__main__ import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [[], ["run"], ["train"], ["gate"], ["calibrate"], ["fetch"], ["profile"], ["list"]])
def test_help_waits_for_nothing_that_takes_time_to_import(command):
    done = subprocess.run([sys.executable, "-c", HELP, *command, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert "Usage" in done.stdout


def test_help_names_the_choices(cli):
    assert all(name in cli("train", "--help").stdout for name in EXPERIMENTS)
    assert all(name in cli("fetch", "--help").stdout for name in DATA)
