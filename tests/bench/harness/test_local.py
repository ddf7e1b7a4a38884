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
