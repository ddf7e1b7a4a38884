import json
import subprocess
import sys
import time

import psutil
import pytest
import torch
from stand_ins import Quiet

from amaml_core import InputError
from bench import sources
from bench.harness import runner, worker
from bench.probes.base import Measurement
from bench.records import Store


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_worker_dies_with_its_runner(tmp_path):
    parent = (
        "import os, subprocess, sys, time\n"
        "code = 'import os, time, sys; from bench.harness.worker import _die_with; _die_with(int(sys.argv[1]));"
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
    request = {"cell": make_cell("fomaml", "counts").model_dump(), "threads": 1, "memory_limit_bytes": None}
    answer = worker.run(request)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer["metrics"]["grad_evals"] == 2


@pytest.mark.parametrize(
    ("ends", "status"), [(None, "ok"), (InputError("no"), "skipped"), (RuntimeError("bad_alloc"), "oom")]
)
def test_the_version_is_that_of_the_code_in_memory_whatever_comes_of_it(make_cell, monkeypatch, ends, status):
    """It is read when all is imported and before anything is measured: the files may change after that."""

    def measure(problem, cell):
        monkeypatch.setattr("bench.harness.versions.benchmark_version", lambda *kind: "as changed")
        if ends is not None:
            raise ends
        return Measurement()

    monkeypatch.setattr("bench.harness.versions.benchmark_version", lambda *kind: "as imported")
    monkeypatch.setattr("bench.harness.versions.git_revision", lambda: "abc")
    monkeypatch.setattr("bench.probes.load", lambda name: measure)
    answer = worker.run({"cell": make_cell("fomaml", "counts").model_dump(), "threads": 1})
    assert (answer["status"], answer["benchmark_version"], answer["git_revision"]) == (status, "as imported", "abc")


SIZED = ("peak_", "flops", "dispatched_ops", "rel_error_", "grad_evals", "states_stored")  # metrics that repeat exactly


def measured(cells, directory, kept_on):
    """The cells' metrics by id, from workers of their own or from one."""
    store, told = Store(directory), []
    plan = runner.plan("test", cells, store)
    records, _ = runner.run(plan, store, timeout_s=120, reporter=Quiet(), say=told.append, kept_on=kept_on)
    assert [(record.status, record.reason) for record in records] == [("ok", "")] * len(cells)
    return {record.cell_id: record.metrics for record in records}


def exact(metrics):
    return {name: value for name, value in metrics.items() if name.startswith(SIZED) and name != "peak_rss_bytes"}


def device_cells(make_cell, device, engines):
    """Of several methods and probes, the time of the first again at the end."""
    first = make_cell("fomaml", "time", inner_steps=20)
    cells = [first, make_cell("maml", "allocator", inner_steps=20)]
    cells += [make_cell("amaml", "memory", num_states=4), make_cell("amaml", "allocator", num_states=4)]
    cells += [make_cell("imaml", "counts"), make_cell("remat-maml", "error"), make_cell("maml", "memory")]
    cells += [make_cell("reptile", "allocator", inner_steps=3).model_copy(update={"engine": e}) for e in engines]
    cells.append(first.model_copy(update={"replicate": 1}))
    return [cell.model_copy(update={"device": device}) for cell in cells]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
    ],
)
def test_a_kept_worker_measures_what_fresh_ones_do_in_any_order(make_cell, tmp_path, device):
    cells = device_cells(make_cell, device, ["eager"] if device == "cpu" else ["graphed", "compiled"])
    fresh = measured(cells, tmp_path / "fresh", ())
    for name, order in (("kept", cells), ("backwards", cells[::-1])):
        kept = measured(order, tmp_path / name, {device})
        assert {key: exact(metrics) for key, metrics in kept.items()} == {k: exact(m) for k, m in fresh.items()}
        assert not any("peak_rss_bytes" in metrics for metrics in kept.values())  # of all cells, were it told
        if device == "cuda":  # on a shared CPU times say nothing
            times = [
                m["outer_update_seconds"] for m in (*kept.values(), *fresh.values()) if "outer_update_seconds" in m
            ]
            assert max(times) < 4 * min(times)


def test_a_kept_worker_tells_the_version_of_the_code_that_it_has_in_memory(make_cell, monkeypatch, tmp_path):
    """Its files may change between two cells."""
    monkeypatch.setattr(sources, "held", {})
    request = {"cell": make_cell("fomaml", "counts").model_dump(), "threads": 1, "kept": True}
    before = worker.run(request)["benchmark_version"]
    assert not [path for path in sources.held if "torch" in path.parts]
    changed = {path: path.read_bytes() + b"\nchanged = 1\n" for path in sources.held}
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: changed[path])
    assert worker.run(request)["benchmark_version"] == before
    sources.held.clear()
    assert worker.run(request | {"kept": False})["benchmark_version"] != before


LIMITED = """
import resource, torch
from bench.harness import worker
cell = {cell}
for gib in (8, 2, 4):
    answer = worker.run({{"cell": cell, "threads": gib // 2, "kept": True, "memory_limit_bytes": gib * 2**30}})
    print(answer["status"], resource.getrlimit(resource.RLIMIT_DATA)[0] // 2**30, torch.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_each_cell_of_a_kept_worker_has_its_own_threads_and_its_own_limit_of_memory(make_cell):
    code = LIMITED.format(cell=make_cell("fomaml", "counts").model_dump() | {"device": "cpu"})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ok 8 4", "ok 2 1", "ok 4 2"]
