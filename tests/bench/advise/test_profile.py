"""The profile's schedule, with stub workers."""

import pytest
from stand_ins import Quiet

from amaml_core import METHODS
from bench.advise import profile
from bench.advise.profile import Budget
from bench.harness import runner
from bench.peers import create
from bench.records import Store

MIB = 2**20


def test_every_registered_method_comes_at_every_length(cells):
    for steps in (4, 20):
        here = [cell for cell in cells if cell.options["inner_steps"] == steps]
        assert {cell.method for cell in here} == set(METHODS)
        assert {cell.probe for cell in here} == {"allocator", "time", "error"}
        assert [cell.probe for cell in here] == list(profile.PHASES) * (len(here) // 3)
        assert all(profile.update_key(here[i]) == profile.update_key(here[i - i % 3]) for i in range(len(here)))
    lengths = [cell.options["inner_steps"] for cell in cells]
    assert lengths == sorted(lengths)


def test_one_worker_measures_all_cells_and_is_given_the_threads_of_each(measure, trace):
    records, _ = measure(seconds=300)
    asked = [line.split() for line in trace.read_text().splitlines()]
    assert len({pid for pid, _, _ in asked}) == 2  # one, and another after the one that ran out of memory
    assert {(probe, int(threads)) for _, probe, threads in asked} == {
        (probe, runner.threads_for(probe, "cpu")) for probe in profile.PHASES
    }
    assert len(asked) == len(records)


ANSWER = """
def answer(cell, options):
    if cell["method"] == "maml" and options["inner_steps"] == 20:
        return {"status": "oom"}
    peak = 10**9 if cell["method"] == "reptile" and options["inner_steps"] == 20 else 1
    return {"metrics": {"peak_allocated_bytes": peak} if cell["probe"] == "allocator" else {}}
"""


@pytest.fixture
def trace(stub_worker):
    return stub_worker(ANSWER)


@pytest.fixture
def measure(tmp_path, trace, cells):
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


def test_checkpoints_are_those_of_the_method_that_the_registry_makes(cells):
    big = [cell for cell in cells if cell.probe == "allocator"]
    leaner = profile.with_checkpoints(big)
    assert [cell.probe for cell in leaner] == list(profile.PHASES) * 4
    for cell in leaner:
        assert create(cell.method, **cell.options).options() == cell.options
    assert [cell.options["num_states"] for cell in leaner[::3]] == [1, 4, 5, 20]
    assert profile.with_checkpoints(leaner) == []
