"""The profile's schedule, with stub workers."""

import sys
from functools import partial

import pytest
from stand_ins import Quiet

from amaml_core import METHODS
from bench.advise import profile
from bench.advise.profile import Budget
from bench.harness import runner
from bench.records import Store

MIB = 2**20


def test_every_registered_method_comes_at_every_length(cells):
    for steps in (4, 20):
        here = [cell for cell in cells if cell.options["inner_steps"] == steps]
        assert {cell.method for cell in here} == set(METHODS)
        assert {cell.probe for cell in here} == {"allocator", "time", "error"}
    order = [(cell.options["inner_steps"], profile.PHASES.index(cell.probe)) for cell in cells]
    assert order == sorted(order)


WORKER = """
import json, os, sys
cell = json.loads(sys.stdin.read())["cell"]
status = "oom" if cell["method"] == "maml" and cell["options"]["inner_steps"] == 20 else "ok"
with os.fdopen(int(sys.argv[1]), "w") as pipe:
    peak = 10**9 if cell["method"] == "reptile" and cell["options"]["inner_steps"] == 20 else 1
    metrics = {"peak_allocated_bytes": peak} if cell["probe"] == "allocator" else {}
    json.dump({"status": status, "reason": "", "metrics": metrics, "samples": {}}, pipe)
"""


@pytest.fixture
def measure(tmp_path, monkeypatch, cells):
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(runner, "run", partial(runner.run, command=(sys.executable, str(tmp_path / "worker.py"))))
    monkeypatch.setattr(runner.environment, "busy", lambda: "")
    store = Store(tmp_path / "store")

    def go(seconds):
        plan = runner.plan("profile", cells, store, retry_failed=True)
        return profile.run(plan, store, Budget(100 * MIB, seconds), reporter=Quiet(), say=print)

    return go


def test_what_needs_too_much_memory_is_not_timed(measure, cells):
    records, interrupted = measure(seconds=300)
    assert not interrupted
    for method in ("maml", "reptile"):
        probes = [r.cell.probe for r in records if r.cell.method == method and r.cell.options["inner_steps"] == 20]
        assert probes == ["allocator"]
    assert len(records) == len(cells) - 4


def test_a_second_profile_measures_only_what_failed(measure, cells, monkeypatch):
    measure(seconds=300)
    started = []
    monkeypatch.setattr(Quiet, "started", lambda self, cell: started.append(cell.method))
    measure(seconds=300)
    assert started == ["maml"]


def test_without_time_nothing_is_started(measure):
    assert measure(seconds=0.5) == ([], False)
