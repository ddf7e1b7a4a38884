import math

import pytest

from reports.paper import published


@pytest.mark.parametrize(
    ("table", "method", "horizon", "states", "mean", "std"),
    [
        ("table4", "autodiff", 0.1, 10, 6.24e-7, 8.87e-8),
        ("table4", "adjoint", 2.0, 1000, 1.32e-5, 1.05e-6),
        ("table5", "amaml", 0.5, 100, 1.03e-3, 1.88e-4),
    ],
)
def test_published_numbers(table, method, horizon, states, mean, std):
    assert published(table)[method][horizon, states] == (mean, std)


def test_no_cell_of_the_published_tables_is_missing():
    assert [len(cells) for cells in published("table4").values()] == [28, 28]
    assert len(published("table5")["amaml"]) == 18


def midpoint_error(horizon, states):
    """Of λ on dy/dt = −2t³ − 2ty by the explicit midpoint rule on K−1 intervals, where λ(0)/λ(T) = exp(−T²)."""
    h, factor = horizon / (states - 1), 1.0
    for j in range(states - 1):
        t = j * h
        factor *= 1 - 2 * h * (t + h / 2) * (1 - h * t)
    return abs(factor * math.exp(horizon**2) - 1)


@pytest.mark.parametrize("horizon", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("states", [10, 20, 50, 100])
def test_the_published_adjoint_is_the_midpoint_rule_and_at_short_horizons_the_columns_are_swapped(horizon, states):
    column = published("table4")["adjoint" if horizon >= 1 else "autodiff"]
    assert column[horizon, states][0] == pytest.approx(midpoint_error(horizon, states), rel=0.015)
