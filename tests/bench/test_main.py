import pytest
import torch


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
