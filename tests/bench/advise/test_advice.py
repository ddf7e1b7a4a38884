"""Advice from records whose truth is known."""

import math

import pytest

import amaml_core as am
from bench.advise.advice import recommend
from bench.advise.candidate import candidates

MIB = 2**20


@pytest.fixture
def told(cells, make_record):
    """Advice for: (method, K) -> bytes, seconds, error to flow, error to unrolled, query loss."""

    def advise(table, memory=100 * MIB, tolerance=0.05, busy=()):
        records = []
        for cell in cells:
            name = cell.method if cell.options.get("backward") != "rk4" else "amaml-rk4"
            if "grad_rtol" in cell.options or (name, cell.options["inner_steps"]) not in table:
                continue
            size, seconds, flow, unrolled, loss = table[name, cell.options["inner_steps"]]
            if size is None or isinstance(size, str):
                records += [make_record(cell, status=size or "oom")] * (cell.probe == "allocator")
                continue
            metrics = {
                "allocator": {"peak_allocated_bytes": size},
                "time": {"outer_update_seconds": seconds},
                "error": {"rel_error_flow": flow, "rel_error_unrolled": unrolled, "query_loss": loss},
            }[cell.probe]
            metrics = {name: value for name, value in metrics.items() if value == value}
            made = make_record(cell, **metrics)
            others = 1.2 * ((name, cell.options["inner_steps"]) in busy)
            records.append(made.model_copy(update={"environment": made.environment | {"cores_taken": others}}))
        return "\n".join(recommend(candidates(records), memory, tolerance).told)

    return advise


TABLE = {
    ("maml", 4): (8 * MIB, 0.04, 0.01, 1e-7, 1.0),
    ("fomaml", 4): (MIB, 0.01, 0.4, 0.4, 1.0),
    ("maml", 20): (40 * MIB, 0.2, 0.01, 1e-7, 0.5),
    ("remat-maml", 20): (5 * MIB, 0.4, 0.01, 1e-7, 0.5),
    ("amaml-rk4", 20): (9 * MIB, 0.1, 1e-4, 0.01, 0.5),
    ("fomaml", 20): (MIB, 0.05, 0.6, 0.6, 0.5),
}


def test_the_fastest_faithful_method_is_recommended_where_the_query_loss_is_lowest(told):
    text = told(TABLE)
    assert text.startswith("Use amaml, 5 states, rk4 at 20 steps (T = 1): 0.1 s, 9.0 MiB")
    assert (
        "am.create_method(\"amaml\", inner_steps=20, inner_lr=0.05, num_states=5, forward='rk4', backward='rk4')"
        in text
    )
    assert "query loss after 20 steps is 0.5, against 1 at 4" in text
    assert "With less memory: remat-maml (0.4 s, 5.0 MiB" in text
    assert "Cheaper, but farther off: fomaml (0.05 s" in text
    assert "At the other lengths: maml at 4 steps" in text


def test_a_method_that_does_not_fit_is_named_and_not_recommended(told):
    text = told(TABLE | {("amaml", 20): (None,) * 5}, memory=7 * MIB)
    assert text.startswith("Use remat-maml at 20 steps")
    assert "Too big for 7.0 MiB: maml; amaml, 5 states, rk4." in text
    assert "Failed there: amaml, 20 states, modified_euler (oom: because)" in text


def test_where_nothing_fits_more_memory_is_the_remedy_and_not_more_time(told):
    untimed = {key: (row[0], *[math.nan] * 4) for key, row in TABLE.items()}
    text = told(untimed, memory=1000)
    assert text.startswith("No method fits in 1000 B; the leanest is fomaml at")
    assert text.endswith("Raise --memory.")


def test_without_the_flows_gradient_the_advice_says_so(told):
    text = told({key: (*row[:2], math.nan, *row[3:]) for key, row in TABLE.items()})
    assert "The flow's gradient could not be found" in text
    assert "The flow's gradient could not be found" not in told(TABLE)


def test_what_was_not_measured_is_not_held_to_be_worse(told):
    half = {("amaml-rk4", n): (9 * MIB, 0.01, math.nan, math.nan, 0.5) for n in (4, 20)}
    text = told(TABLE | half)
    assert text.startswith("Use maml at 20 steps")
    assert "Not measured whole there, and so not compared: amaml, 5 states, rk4." in text
    assert "Cheaper, but farther off: fomaml" in text


def test_a_length_that_was_hardly_measured_does_not_win(told):
    missing = {(name, 20): (*row[:2], math.nan, math.nan, row[4]) for (name, n), row in TABLE.items() if n == 20}
    missing["maml", 20] = TABLE["maml", 20]
    assert told(TABLE | missing).startswith("Use maml at 4 steps")


def test_what_failed_is_named_with_its_remedy(told):
    text = told(TABLE | {("amaml", 20): ("diverged", *[None] * 4)})
    assert text.startswith("Use amaml, 5 states, rk4 at 20 steps")
    assert "Failed there: amaml, 20 states, modified_euler (diverged: because)" in text


def test_a_longer_trajectory_that_gains_nothing_is_not_worth_it(told):
    flat = {key: (*row[:4], 0.500 if key[1] == 20 else 0.504) for key, row in TABLE.items()}
    assert told(flat).startswith("Use maml at 4 steps")
    gain = {key: (*row[:4], 0.500 if key[1] == 20 else 0.506) for key, row in TABLE.items()}
    assert told(gain).startswith("Use amaml, 5 states, rk4 at 20 steps")


def test_a_broken_model_is_not_taken_for_a_want_of_time(cells, make_record):
    failed = [make_record(cell, status="skipped") for cell in cells if cell.probe == "allocator"]
    assert recommend(candidates(failed), MIB, 0.05).told == [
        "No method was measured to the end; mostly because: because"
    ]


def test_a_loss_that_rises_with_the_length_speaks_for_the_shorter(told):
    rising = {key: (*row[:4], 0.1 if key[1] == 4 else 0.5) for key, row in TABLE.items()}
    assert told(rising).startswith("Use maml at 4 steps")


def test_where_nothing_is_good_enough_the_nearest_and_the_remedy_are_told(told):
    text = told({("fomaml", 20): TABLE["fomaml", 20]})
    assert text.startswith("No method fits in 100.0 MiB with a gradient within 5%; the nearest is fomaml at 20 steps")
    assert "--tolerance" in text
    assert "--minutes" in told({})


def test_what_create_method_is_told_makes_that_method(told):
    line = told(TABLE).splitlines()[1].strip()
    made = eval(line, {"am": am})
    assert (made.name, made.num_states, made.backward) == ("amaml", 5, "rk4")


def test_times_on_a_busy_machine_are_told_with_a_doubt_where_they_decided(told):
    doubt = "The machine was busy while these were timed (others used up to 1.2 cores)"
    assert doubt not in told(TABLE)
    assert doubt in told(TABLE, busy=[("amaml-rk4", 20)])
    assert doubt in told(TABLE, busy=[("remat-maml", 20)])  # it might have been the fastest
    assert doubt not in told(TABLE, busy=[("maml", 4)])


def test_steps_that_a_method_finds_itself_are_not_told_as_options(cells, make_record):
    (cell,) = (
        one for one in cells if "grad_rtol" in one.options and one.probe == "time" and one.options["inner_steps"] == 4
    )
    (made,) = candidates([make_record(cell)])
    assert made.name == "amaml, grad_rtol=0.02"
    assert made.call == 'am.create_method("amaml", inner_steps=4, inner_lr=0.05, grad_rtol=0.02)'
