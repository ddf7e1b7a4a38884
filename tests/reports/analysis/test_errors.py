import pytest

from reports.analysis.errors import cosmixture_study, error_points, orders, smallest_stable
from reports.load import tabulate


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


@pytest.mark.parametrize("states", [(0, 10), (-10, 10)])
def test_no_order_between_numbers_of_states_that_are_none(error_at, states):
    made = [error_at(0.1, method="amaml", options={"num_states": k, "inner_steps": 0}) for k in states]
    assert orders(error_points(tabulate(made))) == {}


def test_of_an_unknown_precision_no_error_is_rounding(error_at):
    made = [error_at(1e-9 / k, method="amaml", options={"num_states": k}, dtype="int8") for k in (10, 100)]
    ((order, _),) = orders(error_points(tabulate(made))).values()
    assert order == pytest.approx(1)
