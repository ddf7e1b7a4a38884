"""Faulty workers: each becomes a row with its reason, and the sweep goes on."""

import os
import time

import pytest

from bench.harness import local, runner

MIB = 2**20


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
    stub_bench.assert_whole(cells)


def pids(bench):
    """Of the workers, a cell each, in the order in which they started."""
    lines = [line.split() for line in bench.trace.read_text().splitlines()]
    return [pid for _, pid, what, _ in lines if what == "start"]


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ("hang", "timeout"),
        ("segfault", "crashed"),
        ("raise", "crashed"),
        ("silent", "crashed"),
        ("wrong", "crashed"),
        ("torn", "timeout"),
        ("hog", "oom"),
        ("abort", "oom"),
    ],
)
def test_a_kept_worker_that_fails_loses_its_own_cell_alone(stub_bench, make_cell, method, status):
    cells = [make_cell(name, replicate=n) for n, name in enumerate(["good", "long", method, "good", "long"])]
    records = stub_bench(cells, timeout_s=2.5, memory_bytes=200 * MIB, kept_on={"cpu"})
    assert [record.status for record in records] == ["ok", "ok", status, "ok", "ok"]
    one, two, three, four, five = pids(stub_bench)
    assert one == two == three != four == five
    stub_bench.assert_whole(cells)


def test_a_kept_worker_has_each_cell_to_itself_and_all_its_time(stub_bench, make_cell):
    records = stub_bench([make_cell("slow", "error", n) for n in range(4)], timeout_s=0.9, kept_on={"cpu"})
    assert [record.status for record in records] == ["ok"] * 4  # 1.2 s, and a process's start
    assert len(set(pids(stub_bench))) == 1


def test_libraries_that_set_up_a_whole_process_are_kept_apart(stub_bench, make_cell):
    methods = ["maml", "jax-maml", "jax-remat-maml", "diffrax", "amaml"]
    cells = [make_cell(method) for method in methods]
    cells.append(make_cell("fomaml").model_copy(update={"dtype": "float64"}))
    cells.append(make_cell("maml", "quality"))  # a training
    stub_bench(cells, kept_on={"cpu"})
    ours, jax, also, diffrax, again, double, training = pids(stub_bench)
    assert jax == also
    assert len({ours, jax, diffrax, again, double, training}) == 6


def test_elsewhere_each_cell_has_a_fresh_worker(stub_bench, make_cell):
    stub_bench([make_cell("good", "time", n) for n in range(3)])
    assert len(set(pids(stub_bench))) == 3


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


def test_chatter_does_not_block_a_worker(stub_bench, make_cell):
    (record,) = stub_bench([make_cell("noisy")])
    assert record.metrics == {"flops": 1}


def test_a_worker_sees_only_a_scrubbed_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept")
    scrubbed = local._scrubbed()
    assert "OMP_NUM_THREADS" not in scrubbed
    assert scrubbed["TORCHINDUCTOR_CACHE_DIR"] == "/kept"


def test_what_a_users_file_does_to_the_path_does_not_reach_a_worker(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    assert str(tmp_path) not in local._scrubbed()["PYTHONPATH"].split(os.pathsep)
