"""The runner against planted workers that need no torch."""

import json
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from bench import runner
from bench.records import Store

STUB = """
import json, os, sys, time
request = json.loads(sys.stdin.read())
method = request["cell"]["method"]
with open(os.environ["AMAML_BENCH_TRACE"], "a") as trace:
    trace.write(f"{method} {os.getpid()} start {time.monotonic()}\\n")
def answer(**fields):
    with os.fdopen(int(sys.argv[1]), "w") as pipe:
        json.dump({"status": "ok", "reason": "", "metrics": {}, "samples": {}} | fields, pipe)
if method == "hang":
    time.sleep(600)
elif method == "segfault":
    os.kill(os.getpid(), 11)
elif method == "raise":
    raise RuntimeError("the reason")
elif method == "silent":
    sys.exit(0)
elif method == "torn":
    os.write(int(sys.argv[1]), b'{"status": "o')
elif method == "noisy":
    print("x" * 1_000_000); sys.stderr.write("y" * 1_000_000); answer(metrics={"flops": 1})
elif method == "slow":
    time.sleep(0.3); answer()
else:
    answer(metrics={"flops": 7}, samples={"rel_error_flow": [0.5] * 100_000})
with open(os.environ["AMAML_BENCH_TRACE"], "a") as trace:
    trace.write(f"{method} {os.getpid()} end {time.monotonic()}\\n")
"""


class Quiet:
    def started(self, cell):
        pass

    def finished(self, record):
        pass


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Run cells with the stub; returns their records, whether interrupted, and the store."""
    stub, trace = tmp_path / "stub.py", tmp_path / "trace"
    stub.write_text(STUB)
    trace.touch()
    monkeypatch.setenv("AMAML_BENCH_TRACE", str(trace))
    store = Store(tmp_path / "store")

    def go(cells, timeout_s=30.0, **options):
        plan = runner.plan("test", cells, store, **options)
        return runner.run(
            plan, store, timeout_s=timeout_s, reporter=Quiet(), say=print, command=(sys.executable, str(stub))
        )[0]

    go.store, go.trace = store, trace
    return go


@pytest.mark.parametrize(
    ("method", "status", "words"),
    [
        ("hang", "timeout", "timeout_s"),
        ("segfault", "crashed", "SIGSEGV"),
        ("raise", "crashed", "the reason"),
        ("silent", "crashed", "whole answer"),
        ("torn", "crashed", "whole answer"),
    ],
)
def test_a_faulty_worker_is_a_row_with_a_reason_and_the_sweep_goes_on(bench, make_cell, method, status, words):
    records = bench([make_cell(method), make_cell("good")], timeout_s=1.5)
    by_method = {record.cell.method: record for record in records}
    assert by_method[method].status == status
    assert words in by_method[method].reason
    assert by_method["good"].status == "ok"
    assert bench.store.read() == (records, [])


def test_chatter_does_not_block_a_worker(bench, make_cell):
    (record,) = bench([make_cell("noisy")])
    assert record.metrics == {"flops": 1}


def test_a_second_run_repeats_only_what_is_not_final(bench, make_cell):
    cells = [make_cell(m) for m in ("good", "raise", "hang")]
    assert len(bench(cells, timeout_s=1.5)) == 3
    assert [record.cell.method for record in bench(cells, timeout_s=1.5)] == ["raise"]
    assert {record.cell.method for record in bench(cells, timeout_s=1.5, retry_failed=True)} == {"raise", "hang"}


def test_another_benchmark_version_is_measured_again(bench, make_cell, monkeypatch):
    bench([make_cell("good")])
    monkeypatch.setattr(runner, "benchmark_version", lambda cell: "other")
    assert len(bench([make_cell("good")])) == 1


def test_exclusive_probes_run_alone_and_others_two_at_once(bench, make_cell):
    cells = [make_cell("slow", "error", r) for r in range(4)] + [make_cell("slow", "time", r) for r in range(2)]
    bench(cells)
    running, most, lines = set(), [], bench.trace.read_text().split("\n")[:-1]
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


SWEEP = """
import sys
from pathlib import Path
from bench import runner
from bench.records import Cell, Store
options = {"inner_steps": 1, "inner_lr": 0.1}
cells = [Cell(problem="closed_form", method=f"m{i}", options=options, probe="error") for i in range(30)]
class Say:
    def started(self, cell): print("started", flush=True)
    def finished(self, record): print("finished", flush=True)
store = Store(Path(sys.argv[1]))
plan = runner.plan("test", cells, store)
command = (sys.executable, sys.argv[2])
records, interrupted = runner.run(plan, store, timeout_s=60, reporter=Say(), say=print, command=command)
sys.exit(130 if interrupted else 0)
"""


def sweep_process(bench, tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(bench.store.directory), str(tmp_path / "stub.py")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def assert_complete(bench, tmp_path):
    with sweep_process(bench, tmp_path) as process:
        process.communicate()
    assert process.returncode == 0
    records, _ = bench.store.read()
    assert sorted(record.cell.method for record in records if record.status == "ok") == sorted(
        f"m{i}" for i in range(30)
    )


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 25))])
def test_killed_at_a_random_moment_nothing_finished_is_lost(bench, tmp_path, seed):
    chance = random.Random(seed)
    with sweep_process(bench, tmp_path) as process:
        for _ in range(chance.randrange(2, 20)):
            process.stdout.readline()
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(bench.store.read()[0])
    assert kept < 30
    assert_complete(bench, tmp_path)
    assert len(bench.store.read()[0]) == 30  # each cell once: nothing was measured twice


def test_ctrl_c_finishes_the_running_cells_and_says_so(bench, tmp_path):
    with sweep_process(bench, tmp_path) as process:
        for _ in range(6):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate()
    assert process.returncode == 130
    assert "Interrupted" in told
    assert all(record.status == "ok" for record in bench.store.read()[0])
    assert_complete(bench, tmp_path)


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
