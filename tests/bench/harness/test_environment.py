import json
from types import SimpleNamespace

import pytest
import torch

from bench.harness import environment


def test_an_environment_is_plain_json_and_says_what_a_number_depends_on():
    told = environment.describe("cpu", threads=3)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["counter_key"] in told["timing_key"]
    assert told["timing_key"].endswith("3 threads")
    assert told["blas"]
    assert told["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # not all builds tell their kind
    assert environment.moment("cpu").items() >= {"gpu_mhz": 0, "gpu_throttling": ""}.items()


def test_what_changes_by_the_moment_is_never_in_a_key(monkeypatch):
    before = environment.describe("cpu", threads=1)
    monkeypatch.setattr(environment.psutil, "getloadavg", lambda: (99.0, 0, 0))
    monkeypatch.setattr(environment, "git_revision", lambda: "another")
    after = environment.describe("cpu", threads=1)
    assert (after["load"], after["git_revision"]) == (99.0, "another")
    assert all(before[key] == after[key] for key in ("counter_key", "timing_key"))


def test_a_containers_limit_counts_less_what_it_uses_and_plus_the_files_it_caches(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    free = environment.available_memory()
    for name, text in (("memory.max", "1000"), ("memory.current", "700"), ("memory.stat", "inactive_file 100\nx 1")):
        (tmp_path / name).write_text(text)
    assert environment.available_memory() == 400
    (tmp_path / "memory.max").write_text("max")
    assert environment.available_memory() > 0.5 * free


@pytest.mark.parametrize(("percent", "words"), [(0.0, ""), (5.0, ""), (75.0, "3.0 of 4 cores")])
def test_a_busy_machine_is_noticed_on_the_cores_that_are_ours(monkeypatch, percent, words):
    monkeypatch.setattr(environment, "_usable", lambda: {1, 2, 4, 5})
    shares = [100.0 if core in (0, 3) else percent for core in range(6)]
    monkeypatch.setattr(environment.psutil, "cpu_percent", lambda interval, percpu: shares)
    assert words in environment.busy(0)
    assert bool(environment.busy(0)) == bool(words)
    assert environment.cores_taken(0) == 4 * percent / 100


def test_a_throttled_gpu_is_told_by_nvmls_own_names(monkeypatch):
    """The library is a stand-in: what is tested is how its bits are read."""
    stand_in = SimpleNamespace(
        NVMLError=RuntimeError,
        NVML_CLOCK_SM=1,
        nvmlClocksThrottleReasonNone=0,
        nvmlClocksThrottleReasonSwPowerCap=4,
        nvmlClocksThrottleReasonHwSlowdown=8,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 4,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980 if handle == "GPU-abc" else 0,
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", stand_in)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="abc"))
    assert environment._gpu_clock() == (1980, "SwPowerCap")


def test_of_what_is_timed_the_cores_that_others_take_are_recorded(stub_bench, make_cell, monkeypatch):
    monkeypatch.setattr(environment, "busy", lambda: "")
    monkeypatch.setattr(environment, "cores_taken", lambda seconds: 1.234)
    timed, counted = stub_bench([make_cell("m0", "time"), make_cell("m1", "error")])
    assert timed.environment["cores_taken"] == 1.23
    assert "cores_taken" not in counted.environment


def test_the_warning_comes_once_before_the_first_timing(stub_bench, make_cell, monkeypatch):
    monkeypatch.setattr(environment, "busy", lambda: "busy!")
    said = []
    stub_bench([make_cell("m0", "error"), make_cell("m1", "memory")], say=said.append)
    assert said == []
    stub_bench([make_cell("m2", "time"), make_cell("m3", "time")], say=said.append)
    assert said == ["busy!"]
