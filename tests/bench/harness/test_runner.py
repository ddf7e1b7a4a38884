"""The runner against planted workers that need no torch: what runs when, and what must not shake it.

After each fault nothing finished is lost and every cell gets its one current row.
"""

import random
import signal
import time

import psutil
import pytest
from sweep_process import SweepProcess

from bench.harness import environment, runner
from bench.records import KEY_PACKAGES, current

MIB = 2**20


def test_a_second_run_repeats_only_what_is_not_final(stub_bench, make_cell):
    cells = [make_cell(m) for m in ("good", "raise", "hang")]
    assert len(stub_bench(cells, timeout_s=1.5)) == 3
    assert [record.cell.method for record in stub_bench(cells, timeout_s=1.5)] == ["raise"]
    assert {record.cell.method for record in stub_bench(cells, timeout_s=1.5, retry_failed=True)} == {"raise", "hang"}


def test_another_benchmark_version_is_measured_again(stub_bench, make_cell, monkeypatch):
    stub_bench([make_cell("good")])
    monkeypatch.setattr(runner, "benchmark_version", lambda problem, method, probe: "other")
    assert len(stub_bench([make_cell("good")])) == 1


@pytest.mark.parametrize("package", KEY_PACKAGES)
def test_another_version_of_a_package_that_makes_numbers_is_measured_again(stub_bench, make_cell, monkeypatch, package):
    stub_bench([make_cell("good")])
    known = environment.installed
    if package == "torch":  # tells its own, which has a tag of its build
        monkeypatch.setattr(environment.torch, "__version__", "0.0")
    monkeypatch.setattr(environment, "installed", lambda name: "0.0" if name == package else known(name))
    assert len(stub_bench([make_cell("good")])) == 1


def test_a_row_has_the_version_and_the_revision_that_its_worker_found(stub_bench, make_cell, monkeypatch):
    """They may change while a sweep runs; of a worker that does not answer it is what there was before it."""
    (own,) = stub_bench([make_cell("own")])
    assert (own.benchmark_version, own.environment["git_revision"]) == ("of the worker", "abc+dirty")
    found = iter(["of the plan", "before it", "after it"])
    monkeypatch.setattr(runner, "benchmark_version", lambda problem, method, probe: next(found))
    monkeypatch.setattr(runner, "git_revision", lambda: "before it")
    (failed,) = stub_bench([make_cell("raise")])
    assert (failed.benchmark_version, failed.environment["git_revision"]) == ("before it", "before it")


def test_a_source_that_is_just_being_written_stops_no_sweep(stub_bench, make_cell, monkeypatch):
    def broken(*kind):
        raise SyntaxError("half a file")

    plan = runner.plan("test", [make_cell("raise"), make_cell("good")], stub_bench.store)
    monkeypatch.setattr(runner, "plan", lambda *arguments, **options: plan)
    monkeypatch.setattr(runner, "benchmark_version", broken)
    records = stub_bench([])
    assert {record.status for record in records} == {"ok", "crashed"}
    assert {record.benchmark_version for record in records} == {runner.UNREADABLE}


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


METHODS = [f"m{i}" for i in range(30)]


def sweep_process(bench, most_bytes=None, methods=METHODS, kept_on=()):
    return SweepProcess(bench.store.directory, bench.stub, methods, most_bytes, kept_on)


def assert_goes_on(bench, methods=METHODS):
    with sweep_process(bench, methods=methods) as process:
        process.hear_out()
    assert process.returncode == 0
    records, _ = bench.store.read()
    assert sorted(record.cell.method for record in current(records) if record.status == "ok") == sorted(methods)


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 25))])
def test_killed_at_a_random_moment_nothing_finished_is_lost(stub_bench, seed):
    chance = random.Random(seed)
    with sweep_process(stub_bench) as process:
        for _ in range(chance.randrange(2, 20)):
            process.hear()
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
    kept = len(stub_bench.store.read()[0])
    assert kept < len(METHODS)
    assert_goes_on(stub_bench)
    assert len(stub_bench.store.read()[0]) == len(METHODS)  # each cell once: nothing was measured twice


def test_killed_with_a_kept_worker_nothing_finished_is_lost(stub_bench):
    with sweep_process(stub_bench, kept_on=("cpu",)) as process:
        for _ in range(12):
            process.hear()
        process.send_signal(signal.SIGKILL)
    assert 0 < len(stub_bench.store.read()[0]) < len(METHODS)
    assert_goes_on(stub_bench)
    assert len(stub_bench.store.read()[0]) == len(METHODS)


def test_a_kept_worker_ends_with_its_run_and_with_a_second_ctrl_c(stub_bench):
    for methods, kept in ((["m0", "m1"], ["m0", "m1"]), (["m2", "hang", "m3"], ["m0", "m1", "m2"])):
        with sweep_process(stub_bench, methods=methods, kept_on=("cpu",)) as process:
            while "hang" in methods and "hang" not in stub_bench.trace.read_text():
                time.sleep(0.02)
            if "hang" in methods:
                process.send_signal(signal.SIGINT)
                time.sleep(0.3)
                process.send_signal(signal.SIGINT)
            process.hear_out(timeout=10)
        assert process.returncode == (130 if "hang" in methods else 0)
        assert sorted(record.cell.method for record in stub_bench.store.read()[0]) == kept
        workers = {int(line.split()[1]) for line in stub_bench.trace.read_text().splitlines()}
        assert not any(psutil.pid_exists(worker) for worker in workers)


def test_ctrl_c_finishes_the_running_cells_and_says_so(stub_bench):
    with sweep_process(stub_bench) as process:
        for _ in range(6):
            process.hear()
        process.send_signal(signal.SIGINT)
        told = process.hear_out()
    assert process.returncode == 130
    assert any("Interrupted" in text for text in told)
    assert all(record.status == "ok" for record in stub_bench.store.read()[0])
    assert_goes_on(stub_bench)


def test_a_second_ctrl_c_stops_at_once_and_leaves_no_row_of_what_it_stopped(stub_bench):
    methods = ["m0", "hang", "m1"]
    with sweep_process(stub_bench, methods=methods) as process:
        while (
            stub_bench.trace.read_text().count("start") < 3 and process.returncode is None
        ):  # the hanging one among them
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.hear()
        time.sleep(0.3)
        assert process.returncode is None  # it waits for the one that hangs
        process.send_signal(signal.SIGINT)
        process.hear_out(timeout=10)
    assert process.returncode == 130
    assert sorted(record.cell.method for record in stub_bench.store.read()[0]) == ["m0", "m1"]


def test_ctrl_c_while_the_machine_is_watched_starts_no_cell(stub_bench, make_cell, monkeypatch):
    def watch():
        signal.raise_signal(signal.SIGINT)
        return ""

    monkeypatch.setattr(runner.environment, "busy", watch)
    assert stub_bench([make_cell("m0", "time")]) == []


def test_a_full_disk_stops_the_sweep_and_loses_nothing_that_was_finished(stub_bench):
    with sweep_process(stub_bench, MIB) as process:  # a file-size limit stands for the disk
        *_, complaint = process.hear_out()
    assert "File too large" in complaint
    records, torn = stub_bench.store.read()
    assert 0 < len(records) < len(METHODS)
    assert not torn
    assert_goes_on(stub_bench)
    assert len(stub_bench.store.read()[0]) == len(METHODS)


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
    stub_bench.assert_whole(cells)


def test_what_runs_into_the_deadline_leaves_no_row(stub_bench, make_cell):
    cells = [make_cell("good"), make_cell("hang"), make_cell("good", replicate=1), make_cell("good", "memory")]
    began = time.monotonic()
    records = stub_bench(cells, deadline=began + 1.5)
    assert time.monotonic() - began < 10
    assert {record.cell.method for record in records} == {"good"}
    assert {cell.method for cell in runner.plan("test", cells, stub_bench.store).todo} >= {"hang"}
