import math

import pytest

from reports.load import tabulate
from reports.summary import (
    comparisons,
    cosmixture_study,
    error_points,
    log_slope,
    one_memory,
    orders,
    readings,
    scalings,
    smallest_stable,
)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_slope_of_a_power_law_is_its_power(power):
    steps = [20, 50, 100, 1000]
    assert log_slope(steps, [3 * n**power for n in steps]) == pytest.approx(power, abs=1e-12)


def test_no_slope_of_a_single_point():
    assert math.isnan(log_slope([20], [1.0]))


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


def study(error_at, make, states_status, **rest):
    options = {"forward": "dopri5", "backward": "euler"}
    return [
        error_at(1 / k, method="amaml", options=options | {"num_states": k}, **rest)
        if status == "ok"
        else make("error", "amaml", options=options | {"num_states": k}, status=status, **rest)
        for k, status in states_status.items()
    ]


@pytest.mark.parametrize(
    ("states_status", "smallest"),
    [
        ({10: "ok", 20: "ok", 50: "ok"}, 10),
        ({10: "diverged", 20: "ok", 50: "ok"}, 20),
        ({10: "ok", 20: "diverged", 50: "ok"}, 50),
        ({10: "ok", 20: "ok", 50: "diverged"}, None),
    ],
)
def test_smallest_stable_states(make, error_at, states_status, smallest):
    found = smallest_stable(error_points(tabulate(study(error_at, make, states_status))))
    assert found.get((1.0, "amaml (euler)", "float32, cpu")) == smallest


def test_a_study_needs_three_numbers_of_states(make, error_at):
    two, three = (dict.fromkeys(states, "ok") for states in ([10, 20], [10, 20, 50]))
    assert len(cosmixture_study(tabulate(study(error_at, make, two)))) == 0
    assert len(cosmixture_study(tabulate(study(error_at, make, three)))) == 3


def test_a_study_is_left_out_of_the_overview_unless_its_cost_is_known(make, error_at):
    made = study(error_at, make, {10: "ok", 20: "ok", 50: "ok"})
    assert comparisons(tabulate(made)) == []
    made.append(make("time", "amaml", options={"forward": "dopri5", "backward": "euler", "num_states": 20}))
    assert [found.rows.label.tolist() for found in comparisons(tabulate(made))] == [["amaml (euler, 20 states)"]]


def test_mean_and_spread_come_from_the_samples(make):
    made = [make("error", "amaml", metrics={"rel_error_flow": 9.0}, samples={"rel_error_flow": [1.0, 2.0, 3.0]})]
    points = error_points(tabulate(made))
    assert (points["mean"].iloc[0], points["std"].iloc[0]) == (2.0, 1.0)


def test_order_is_read_above_rounding(error_at):
    made = [
        error_at(max(k**-2.0, 1e-15), method="amaml", options={"num_states": k}, dtype="float64")
        for k in (10, 100, 10**8, 10**9)
    ]
    ((order, span),) = orders(error_points(tabulate(made))).values()
    assert order == pytest.approx(2)
    assert span == "10–100"


def test_no_order_from_rounding_alone(error_at):
    made = [error_at(1e-7, method="amaml", options={"num_states": k}) for k in (10, 100)]
    assert orders(error_points(tabulate(made))) == {}


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
