"""What is measured after what, with stub workers."""

import time
from contextlib import nullcontext

import pytest
from stand_ins import Quiet

from bench.advise import rounds
from bench.records import Store

# maml is the fastest, then amaml, then remat-maml; only remat-maml and what keeps few states are small
ANSWER = """
SECONDS = {"maml": 0.1, "amaml": 0.2, "remat-maml": 0.3}
def answer(cell, options):
    method, chunk = cell["method"], cell["problem_options"]["chunk_size"]
    lean = chunk == 1 or method == "remat-maml" or options.get("checkpoint")
    off = 0.5 if method not in SECONDS else 0.01
    status = "ok"
    RULE
    peak = 1 if lean else 1000
    metrics = {
        "allocator": {"peak_allocated_bytes": peak},
        "time": {"outer_update_seconds": SECONDS.get(method, 0.01)},
        "error": {"rel_error_flow": off, "rel_error_unrolled": off, "query_loss": 1.0},
    }[cell["probe"]]
    return {"target": "flow", "status": status, "metrics": metrics, "reason": "" if status == "ok" else "because"}
"""


@pytest.fixture
def profiled(stub_worker, tmp_path):
    """A profile of workers that answer by this rule, and what was measured, in order."""
    (tmp_path / "mine.py").write_text("")

    def go(rule="pass", memory=100, seconds=300.0, steps=20):
        stub_worker(ANSWER.replace("RULE", rule))
        asked = rounds.Question(f"{tmp_path}/mine.py:make", [steps], 0.05, "cpu", "float32", memory, 0.05)
        reporting = lambda plan: nullcontext(Quiet())  # noqa: E731
        made = rounds.Profile(asked, Store(tmp_path / "store"), time.monotonic() + seconds, reporting, print)
        made.run()
        return made

    return go


def asked(made):
    """(method, checkpoint, chunk_size, seed) of what was measured, whatever the probe."""
    cells = [record.cell for record in made.records]
    return list(
        dict.fromkeys(
            (c.method, bool(c.options.get("checkpoint")), c.problem_options["chunk_size"], c.seed) for c in cells
        )
    )


def test_checkpoints_are_tried_where_the_plain_one_was_too_big_and_before_tasks_one_at_a_time(profiled):
    made = profiled()
    assert made.advice.best.name == "amaml, 5 states, rk4, checkpoints"
    assert [one for one in asked(made) if one[1]] == [("amaml", True, None, seed) for seed in (0, 1, 2)]
    assert not any(chunk for _, _, chunk, _ in asked(made))


def test_updates_that_checkpoints_make_one_are_measured_once(profiled):
    made = profiled("lean = method == 'remat-maml'", steps=1)
    ids = [record.cell_id for record in made.records]
    assert len(set(ids)) == len(ids)
    assert ("amaml", True, None, 0) in asked(made)


def test_where_nothing_was_too_big_there_are_no_checkpoints(profiled):
    made = profiled(memory=10_000)
    assert made.advice.best.cell.method == "maml"
    assert not any(checkpoint for _, checkpoint, _, _ in asked(made))


def test_tasks_one_at_a_time_are_tried_where_no_checkpoint_helps(profiled):
    made = profiled("lean = chunk == 1")
    assert (made.advice.best.cell.method, made.advice.best.chunk_size) == ("maml", 1)
    assert ("amaml", True, None, 0) in asked(made)
    assert ("amaml", True, 1, 0) not in asked(made)


def test_what_is_recommended_is_looked_at_on_other_tasks(profiled):
    made = profiled(memory=10_000)
    assert [one for one in asked(made) if one[3]] == [("maml", False, None, 1), ("maml", False, None, 2)]
    assert {record.cell.probe for record in made.records if record.cell.seed} == {"error"}
    assert "looked at again on 2 other batches" in " ".join(made.advice.told)


@pytest.mark.parametrize(
    ("fails", "words"), [("off = 0.4", "it is 4.0e-01 from the nearer"), ("status = 'diverged'", "it diverged")]
)
def test_one_that_does_not_hold_on_other_tasks_is_toppled_and_the_next_is_looked_at(profiled, fails, words):
    made = profiled(f"if method == 'maml' and cell['seed'] == 2: {fails}", memory=10_000)
    assert made.advice.best.cell.method == "amaml"
    assert made.advice.best.rechecked
    told = " ".join(made.advice.told)
    assert f"maml at 20 steps came before, but on other tasks {words}" in told


def test_where_none_holds_there_is_no_recommendation_and_it_says_why(profiled):
    made = profiled("if cell['seed']: off = 0.4", memory=10_000)
    assert made.advice.best is None
    assert sum("came before" in line for line in made.advice.told) == 5  # amaml's three among them


def test_a_look_at_other_tasks_that_crashes_is_told_and_not_repeated(profiled):
    made = profiled("if cell['seed']: status = 'crashed'", memory=10_000)
    assert made.advice.best.cell.method == "maml"
    assert "on 1 and not 3 batches of tasks" in " ".join(made.advice.told)
    assert [record.cell.seed for record in made.records if record.cell.seed] == [1, 2]


def test_the_second_time_only_what_is_wanting_is_measured(profiled):
    first = profiled()
    second = profiled()
    assert [record.started_at for record in second.records] == [record.started_at for record in first.records]
    assert second.advice.told == first.advice.told


def test_without_time_the_advice_asks_for_more(profiled):
    made = profiled(seconds=0.3)
    assert made.records == []
    assert "--minutes" in made.advice.told[0]
