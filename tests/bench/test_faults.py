"""What must not shake the runner. After each fault nothing finished is lost and every cell gets its one current row."""

import random
import signal
import subprocess
import sys
import time

import pytest

from bench import runner
from bench.records import current

MIB = 2**20


def assert_whole(bench, cells):
    """The plan of a second run finds every cell done, by exactly one current row each."""
    records, _ = bench.store.read()
    assert sorted(record.cell_id for record in current(records)) == sorted(cell.cell_id for cell in cells)
    again = runner.plan("test", cells, bench.store)
    tried_again = {record.cell_id for record in current(records) if record.status == "crashed"}
    assert {cell.cell_id for cell in again.todo} == tried_again


@pytest.mark.parametrize(
    ("method", "status", "words"),
    [
        ("hang", "timeout", "timeout_s"),
        ("segfault", "crashed", "SIGSEGV"),
        ("raise", "crashed", "the reason"),
        ("silent", "crashed", "whole answer"),
        ("torn", "crashed", "whole answer"),
        ("nan", "crashed", "NaN"),
        ("realtime", "crashed", "signal 35"),
        ("wrong", "crashed", "wrong field"),
        ("list", "crashed", "whole answer"),
        ("hog", "oom", "more memory"),
        ("greedy", "oom", "0.195 GiB"),
        ("abort", "oom", "fewer steps"),
    ],
)
def test_a_faulty_worker_is_a_row_with_a_reason_and_the_sweep_goes_on(stub_bench, make_cell, method, status, words):
    cells = [make_cell(method, "memory"), make_cell("good"), make_cell("good", "memory")]
    records = stub_bench(cells, timeout_s=2.5, memory_bytes=200 * MIB)
    by_method = {record.cell.method: record for record in records}
    assert by_method[method].status == status
    assert words in by_method[method].reason
    assert [record.status for record in records if record.cell.method == "good"] == ["ok", "ok"]
    assert stub_bench.store.read() == (records, [])
    assert_whole(stub_bench, cells)


def test_what_a_worker_leaves_running_does_not_hold_up_its_answer(stub_bench, make_cell):
    began = time.monotonic()
    (record,) = stub_bench([make_cell("parent")], timeout_s=20)
    assert (record.status, record.metrics) == ("ok", {"flops": 7})
    assert time.monotonic() - began < 15


def test_two_hogs_at_once_share_what_there_is(stub_bench, make_cell, monkeypatch):
    monkeypatch.setattr(runner, "MEMORY_SHARE", 400 * MIB / runner.environment.available_memory())
    records = stub_bench([make_cell("hog", replicate=r) for r in range(2)])
    assert [record.status for record in records] == ["oom", "oom"]
    assert all("0.1" in record.reason for record in records)  # about 0.195 GiB each


SWEEP = """
import resource, signal, sys
from pathlib import Path
from bench import runner
from bench.records import Cell, Store
options = {"inner_steps": 1, "inner_lr": 0.1}
cells = [Cell(problem="closed_form", method=m, options=options, probe="error") for m in sys.argv[3].split(",")]
if len(sys.argv) > 4:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
class Say:
    def started(self, cell): print("started", flush=True)
    def progressed(self, cell, done, total): pass
    def finished(self, record): print("finished", flush=True)
store = Store(Path(sys.argv[1]))
plan = runner.plan("test", cells, store)
command = (sys.executable, sys.argv[2])
records, interrupted = runner.run(plan, store, timeout_s=60, reporter=Say(), say=print, command=command)
sys.exit(130 if interrupted else 0)
"""
METHODS = [f"m{i}" for i in range(30)]


def sweep_process(bench, *more, methods=METHODS):
    where = (str(bench.store.directory), str(bench.stub), ",".join(methods))
    return subprocess.Popen(
        [sys.executable, "-c", SWEEP, *where, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def assert_goes_on(bench, methods=METHODS):
    with sweep_process(bench, methods=methods) as process:
        process.communicate()
    assert process.returncode == 0
    records, _ = bench.store.read()
    assert sorted(record.cell.method for record in current(records) if record.status == "ok") == sorted(methods)


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 25))])
def test_killed_at_a_random_moment_nothing_finished_is_lost(stub_bench, seed):
    chance = random.Random(seed)
    with sweep_process(stub_bench) as process:
        for _ in range(chance.randrange(2, 20)):
            process.stdout.readline()
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(stub_bench.store.read()[0])
    assert kept < 30
    assert_goes_on(stub_bench)
    assert len(stub_bench.store.read()[0]) == 30  # each cell once: nothing was measured twice


def test_ctrl_c_finishes_the_running_cells_and_says_so(stub_bench):
    with sweep_process(stub_bench) as process:
        for _ in range(6):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate()
    assert process.returncode == 130
    assert "Interrupted" in told
    assert all(record.status == "ok" for record in stub_bench.store.read()[0])
    assert_goes_on(stub_bench)


def test_a_second_ctrl_c_stops_at_once_and_leaves_no_row_of_what_it_stopped(stub_bench):
    methods = ["m0", "hang", "m1"]
    with sweep_process(stub_bench, methods=methods) as process:
        while stub_bench.trace.read_text().count("start") < 3 and process.poll() is None:  # the hanging one among them
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.stdout.readline()
        time.sleep(0.3)
        assert process.poll() is None  # it waits for the one that hangs
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 130
    assert sorted(record.cell.method for record in stub_bench.store.read()[0]) == ["m0", "m1"]


def test_ctrl_c_while_the_machine_is_watched_starts_no_cell(stub_bench, make_cell, monkeypatch):
    def watch():
        signal.raise_signal(signal.SIGINT)
        return ""

    monkeypatch.setattr(runner.environment, "busy", watch)
    assert stub_bench([make_cell("m0", "time")]) == []


def test_a_full_disk_stops_the_sweep_and_loses_nothing_that_was_finished(stub_bench):
    with sweep_process(stub_bench, str(4 * MIB)) as process:  # a file-size limit stands for the disk
        _, complaint = process.communicate()
    assert "File too large" in complaint
    records, torn = stub_bench.store.read()
    assert 0 < len(records) < 30
    assert not torn
    assert_goes_on(stub_bench)
    assert len(stub_bench.store.read()[0]) == 30


@pytest.mark.parametrize("seed", range(3))
def test_a_truncated_store_costs_the_cut_rows_only(stub_bench, make_cell, seed):
    cells = [make_cell(f"m{i}") for i in range(4)]
    stub_bench(cells)
    path = stub_bench.store.path
    whole = path.read_bytes()
    cut = random.Random(seed).randrange(1, len(whole) - 1)
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    records, complaints = stub_bench.store.read()
    assert len(records) == kept
    assert all("skipped" in complaint for complaint in complaints)
    assert len(stub_bench(cells)) == 4 - kept
    assert_whole(stub_bench, cells)


def test_what_runs_into_the_deadline_leaves_no_row(stub_bench, make_cell):
    cells = [make_cell("good"), make_cell("hang"), make_cell("good", replicate=1), make_cell("good", "memory")]
    began = time.monotonic()
    records = stub_bench(cells, deadline=began + 1.5)
    assert time.monotonic() - began < 10
    assert {record.cell.method for record in records} == {"good"}
    assert {cell.method for cell in runner.plan("test", cells, stub_bench.store).todo} >= {"hang"}
