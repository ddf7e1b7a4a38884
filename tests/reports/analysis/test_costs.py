import math

import pytest

from reports.analysis.costs import comparisons, one_memory, readings, scalings
from reports.load import tabulate


def memory(make, method, steps, law, **rest):
    return [
        make("memory", method, options={"inner_steps": n}, metrics={"peak_live_bytes": law(n)}, **rest) for n in steps
    ]


def test_scaling_fits_from_twenty_steps_on_and_compares_at_five_hundred(make):
    # below 20 steps a fixed cost would spoil the fit
    made = memory(make, "maml", [1, 5, 20, 100, 500, 1000], lambda n: 1e9 if n < 20 else 1000 * n)
    made += memory(make, "fomaml", [1, 5, 20, 100, 500, 1000], lambda n: 5000)
    (law,) = scalings(tabulate(made), "memory")
    lines = law.lines.set_index("label")
    assert law.reference == 500
    assert lines.slope["maml"] == pytest.approx(1)
    assert lines.points["maml"] == 4
    assert lines.slope["fomaml"] == pytest.approx(0, abs=1e-12)
    assert lines.ratio["fomaml"] == pytest.approx(0.01)


def test_scaling_without_five_hundred_steps_compares_at_the_most(make):
    (law,) = scalings(tabulate(memory(make, "maml", [10, 100], lambda n: n)), "memory")
    assert law.reference == 100


def test_scaling_keeps_failures_apart(make):
    made = memory(make, "maml", [20, 100], lambda n: n)
    made.append(make("memory", options={"inner_steps": 500}, status="oom"))
    (law,) = scalings(tabulate(made), "memory")
    assert law.lines.failed[0] == {500: "oom"}
    assert law.lines.steps[0] == [20, 100]


def test_machines_are_never_compared(make):
    made = [make("time", seed=s, metrics={"outer_update_seconds": 1.0}, environment={"timing_key": s}) for s in (0, 1)]
    assert len(scalings(tabulate(made), "time")) == 2


def test_as_many_states_as_steps_are_one_line_and_a_point_may_lie_on_two(make):
    def cell(steps, states):
        options = {"inner_steps": steps, "num_states": states, "backward": "rk4"}
        return make("memory", "amaml", options=options, metrics={"peak_live_bytes": 10.0 * states})

    (law,) = scalings(tabulate([cell(n, n) for n in (20, 50, 100)] + [cell(n, 50) for n in (20, 100)]), "memory")
    lines = law.lines.set_index("label")
    assert sorted(lines.index) == ["amaml (rk4, 50 states)", "amaml (rk4, a state a step)"]
    assert lines.steps["amaml (rk4, a state a step)"] == [20, 50, 100]
    assert lines.slope["amaml (rk4, a state a step)"] == pytest.approx(1.0)
    assert lines.steps["amaml (rk4, 50 states)"] == [20, 50, 100]
    assert lines.slope["amaml (rk4, 50 states)"] == pytest.approx(0.0, abs=1e-12)


def test_probes_of_the_same_update_are_joined_whatever_their_samples(make):
    made = [
        make("memory", metrics={"peak_live_bytes": 7}),
        make("time", metrics={"outer_update_seconds": 9.0}, samples={"outer_update_seconds": [1.0, 2.0, 3.0]}),
        make("error", metrics={"rel_error_flow": 0.5}, problem_options={"shots": 100, "samples": 20}),
    ]
    (found,) = comparisons(tabulate(made))
    (row,) = found.rows.to_dict("records")
    assert (row["peak_live_bytes"], row["outer_update_seconds"], row["rel_error_flow"]) == (7, 2.0, 0.5)
    assert (row["seconds_low"], row["seconds_high"]) == (1.5, 2.5)


@pytest.mark.parametrize("other", [{"dtype": "float64"}, {"engine": "compiled"}, {"options": {"lam": 2}}])
def test_different_updates_are_not_joined(make, other):
    (found,) = comparisons(tabulate([make("memory"), make("error", **other)]))
    assert len(found.rows) == 2


def test_replicates_share_a_row_and_a_failure_speaks(make):
    made = [
        make("time", replicate=0, status="timeout", reason="slow"),
        make("time", replicate=1, metrics={"outer_update_seconds": 1.0}),
    ]
    (found,) = comparisons(tabulate(made))
    assert found.rows.by_probe[0]["time"][:2] == ("timeout", "slow")


def test_a_study_is_left_out_of_the_overview_unless_its_cost_is_known(make, error_at):
    options = {"forward": "dopri5", "backward": "euler"}
    made = [error_at(1 / k, method="amaml", options=options | {"num_states": k}) for k in (10, 20, 50)]
    assert comparisons(tabulate(made)) == []
    made.append(make("time", "amaml", options=options | {"num_states": 20}))
    assert [found.rows.label.tolist() for found in comparisons(tabulate(made))] == [["amaml (euler, 20 states)"]]


def test_both_readings_of_an_update_are_put_side_by_side(make):
    made = []
    for method, live, allocated in (("maml", 1000, 1000), ("fomaml", 1200, 1000)):
        made.append(make("memory", method, metrics={"peak_live_bytes": live}))
        made.append(make("allocator", method, metrics={"peak_allocated_bytes": allocated}))
    made.append(make("memory", "reptile", metrics={"peak_live_bytes": 5}))  # one reading only
    both = readings(tabulate(made))
    assert dict(zip(both.label, both.off, strict=True)) == {"maml": 0.0, "fomaml": pytest.approx(0.2)}


def test_an_update_of_which_only_the_allocator_was_read_has_that_for_its_memory(make):
    made = [
        make("memory", "maml", metrics={"peak_live_bytes": 7}),
        make("allocator", "maml", metrics={"peak_allocated_bytes": 8}),
        make("allocator", "fomaml", metrics={"peak_allocated_bytes": 9}),
        make("allocator", "reptile", status="oom", reason="too big"),
    ]
    frame = one_memory(tabulate(made))
    (law,) = scalings(frame, "memory")
    assert dict(zip(law.lines.method, law.lines.value, strict=True)) == pytest.approx(
        {"maml": 7, "fomaml": 9, "reptile": math.nan}, nan_ok=True
    )
    assert list(readings(frame).label) == ["maml"]
    (compared,) = comparisons(frame)
    assert compared.rows.set_index("method").by_probe["reptile"]["memory"][0] == "oom"


def test_on_cuda_the_requested_bytes_count_and_compiled_updates_do_not(make):
    blocks = {"peak_allocated_bytes": 2048, "peak_cuda_requested_bytes": 1000}
    made = [make("memory", metrics={"peak_live_bytes": 1000}, device="cuda")]
    made += [make("allocator", metrics=blocks, device="cuda")]
    made += [make("memory", metrics={"peak_live_bytes": 9}, engine="compiled")]
    made += [make("allocator", metrics={"peak_allocated_bytes": 1}, engine="compiled")]
    assert list(readings(tabulate(made)).off) == [0.0]


def test_readings_of_nothing_agree(make):
    made = [make("memory", metrics={"peak_live_bytes": 0}), make("allocator", metrics={"peak_allocated_bytes": 0})]
    assert readings(tabulate(made)).off.tolist() == [0.0]
