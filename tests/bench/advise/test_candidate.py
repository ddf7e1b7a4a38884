import math

import pytest

import amaml_core as am
from bench.advise.candidate import candidates
from bench.advise.profile import on_other_tasks, with_checkpoints


@pytest.fixture
def one(cells, make_record):
    """The candidate of a method whose error on the first tasks and on others is this, or that status."""

    def make(method="amaml", first=0.01, again=(), busy=0.0, target="flow"):
        def record(cell, value, **metrics):
            if isinstance(value, str):
                made = make_record(cell, status=value)
            else:
                made = make_record(cell, rel_error_flow=value, query_loss=value, **metrics)
            return made.model_copy(update={"target": target})

        mine = {cell.probe: cell for cell in cells if cell.method == method and cell.options["inner_steps"] == 20}
        timed = make_record(mine["time"], outer_update_seconds=1.0)
        rows = [make_record(mine["allocator"], peak_allocated_bytes=7), record(mine["error"], first)]
        rows.append(timed.model_copy(update={"environment": timed.environment | {"cores_taken": busy}}))
        others = on_other_tasks(mine["time"])
        rows += [record(cell, value) for cell, value in zip(others, again, strict=False)]
        (found,) = candidates(rows)
        return found

    return make


def test_the_worst_error_on_all_tasks_counts_and_the_loss_of_the_first_is_told(one):
    found = one(first=0.01, again=(0.2, 0.03))
    assert (found.first_error, found.error, found.rechecked) == (0.01, 0.2, True)
    assert found.metrics["query_loss"] == 0.01
    assert not one(first=0.01, again=(0.02,)).rechecked


@pytest.mark.parametrize(("target", "method"), [("flow", "amaml"), ("unrolled", "maml")])
def test_what_diverges_on_other_tasks_has_failed_whatever_it_was_on_the_first(one, target, method):
    found = one(method, first=0.01, again=(0.01, "diverged"), target=target)
    assert math.isnan(found.error)
    assert found.first_error == 0.01
    assert found.failures == {"error": ("diverged", "on other tasks, because")}


def test_a_crash_or_a_want_of_time_on_other_tasks_says_nothing_against_a_method(one):
    found = one(first=0.01, again=("crashed", "timeout"))
    assert (found.error, found.rechecked, found.failures) == (0.01, False, {})


def test_the_machine_was_busy_where_others_used_its_cores_while_it_was_timed(one):
    assert [one(busy=cores).busy for cores in (0.0, 0.2, 1.4)] == [0.0, 0.0, 1.4]


def test_every_update_has_a_name_of_its_own_and_a_call_that_makes_it(cells, make_record):
    small = [cell.model_copy(update={"problem_options": cell.problem_options | {"chunk_size": 1}}) for cell in cells]
    every = [cell for cell in [*cells, *with_checkpoints(cells), *small] if cell.probe == "time"]
    found = candidates([make_record(cell) for cell in every])
    names = {(one.name, one.steps) for one in found}
    assert len(names) == len(found)
    assert ("amaml, 5 states, rk4, checkpoints", 20) in names
    for one in found:
        assert eval(one.call, {"am": am}).options() == one.cell.options
