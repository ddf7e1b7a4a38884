import json
import subprocess
import sys
import time

import psutil
import pytest

from amaml_core import InputError
from bench.harness import worker
from bench.probes.base import Measurement


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
