"""The runner against planted workers that need no torch: what runs when, and what a worker sees."""

import json
import subprocess
import sys
import time

import psutil
import pytest

from bench import runner


def test_chatter_does_not_block_a_worker(stub_bench, make_cell):
    (record,) = stub_bench([make_cell("noisy")])
    assert record.metrics == {"flops": 1}


def test_a_second_run_repeats_only_what_is_not_final(stub_bench, make_cell):
    cells = [make_cell(m) for m in ("good", "raise", "hang")]
    assert len(stub_bench(cells, timeout_s=1.5)) == 3
    assert [record.cell.method for record in stub_bench(cells, timeout_s=1.5)] == ["raise"]
    assert {record.cell.method for record in stub_bench(cells, timeout_s=1.5, retry_failed=True)} == {"raise", "hang"}


def test_another_benchmark_version_is_measured_again(stub_bench, make_cell, monkeypatch):
    stub_bench([make_cell("good")])
    monkeypatch.setattr(runner, "benchmark_version", lambda cell: "other")
    assert len(stub_bench([make_cell("good")])) == 1


def test_exclusive_probes_run_alone_and_others_two_at_once(stub_bench, make_cell):
    cells = [make_cell("slow", "error", r) for r in range(4)] + [make_cell("slow", "time", r) for r in range(2)]
    stub_bench(cells)
    running, most, lines = set(), [], stub_bench.trace.read_text().split("\n")[:-1]
    for line in sorted(lines, key=lambda line: float(line.split()[3])):
        _, pid, what, _ = line.split()
        running = running | {pid} if what == "start" else running - {pid}
        most.append(len(running))
    assert max(most) == 2
    assert max(most[8:]) == 1  # the two timed ones come last


def test_a_worker_sees_only_a_scrubbed_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept")
    scrubbed = runner._scrubbed()
    assert "OMP_NUM_THREADS" not in scrubbed
    assert scrubbed["TORCHINDUCTOR_CACHE_DIR"] == "/kept"


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_worker_dies_with_its_runner(tmp_path):
    parent = (
        "import os, subprocess, sys, time\n"
        "code = 'import os, time, sys; from bench.worker import _die_with; _die_with(int(sys.argv[1]));"
        " print(os.getpid(), flush=True); time.sleep(600)'\n"
        "subprocess.Popen([sys.executable, '-c', code, str(os.getpid())])\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and _alive(worker):
            time.sleep(0.02)
        assert not _alive(worker)


def _alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_the_answer_of_the_real_worker_is_plain_json(make_cell):
    from bench import worker

    request = {"cell": make_cell("fomaml", "counts").model_dump(), "threads": 1, "memory_limit_bytes": None}
    answer = worker.run(request)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer["metrics"]["grad_evals"] == 2
