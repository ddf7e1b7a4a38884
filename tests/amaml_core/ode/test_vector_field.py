"""What stands behind a gradient through any vector field."""

import math

import pytest
import torch

import amaml_core as am
from amaml_core.ode import vector_field

ONE = torch.ones(1, dtype=torch.float64)


def decay(rate):
    return lambda t, u: -rate * u


@pytest.mark.parametrize("backward", ["modified_euler", "rk4", "discrete"])
def test_an_unstable_solve_is_told(backward):
    forward = {"forward": "rk4"} if backward == "discrete" else {}
    found = am.adjoint_gradient(decay(100.0), ONE, 1.0, lambda u: u, 20, backward=backward, **forward)
    assert found.status == "diverged"
    assert "num_states" in found.status.remedy


def test_a_good_one_costs_nothing_more_and_is_ok():
    calls = []

    def f(t, u):
        calls.append(1)
        return -u

    found = am.adjoint_gradient(f, ONE, 1.0, lambda u: u, 50, forward="rk4", backward="rk4")
    once = len(calls)
    assert found.status == "ok"
    assert found.error_estimate is None
    assert found.defect < 1e-6
    am.adjoint_gradient(f, ONE, 1.0, lambda u: u, 50, forward="rk4", backward="rk4", estimate_error=True)
    assert len(calls) - once > 1.4 * once


def test_it_is_the_pair_that_it_always_was():
    end, grad = found = am.adjoint_gradient(decay(1.0), ONE, 1.0, lambda u: u, 50)
    assert end is found.end is found[0]
    assert grad is found.grad is found[1]
    assert len(found) == 2


@pytest.mark.parametrize("states", [4, 8, 16])
def test_the_estimate_covers_the_error(states):
    found = am.adjoint_gradient(decay(2.0), ONE, 1.0, lambda u: u, states, forward="rk4", estimate_error=True)
    error = abs(float(found.grad) / math.exp(-4.0) - 1)
    assert error < 3 * found.error_estimate
    assert (found.status == "ok") == (found.error_estimate <= 0.1)


def test_too_few_states_are_told_with_the_figure():
    found = am.adjoint_gradient(lambda t, u: -(u**3), 10 * ONE, 2.0, torch.ones_like, 300)
    assert float(found.grad) != pytest.approx(401**-1.5, rel=0.1)
    assert found.status in ("inaccurate", "diverged")


def test_a_jump_of_the_field_is_told():
    found = am.adjoint_gradient(lambda t, u: torch.where(u > 0, -4.0, -1.0) + 0 * u, ONE, 1.0, torch.ones_like, 200)
    assert found.status == "inaccurate"
    assert found.defect == pytest.approx(0.75, abs=0.01)


def test_where_f_depends_on_time_there_is_no_defect():
    found = am.adjoint_gradient(lambda t, u: u * torch.cos(t), ONE, 2.0, torch.ones_like, 100)
    assert math.isnan(found.defect)
    assert found.status == "ok"


def test_growth_that_is_the_systems_own_is_ok():
    found = am.adjoint_gradient(decay(-3.0), ONE, 1.0, torch.ones_like, 100, forward="rk4", backward="discrete")
    assert float(found.grad) == pytest.approx(math.exp(3), rel=1e-4)
    assert found.status == "ok"


def test_what_was_found_is_not_lost_where_its_estimate_fails(monkeypatch):
    calls, solve = [], vector_field.solve

    def once(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise am.SolverFailedError("gave up")
        return solve(*arguments, **options)

    monkeypatch.setattr(vector_field, "solve", once)
    found = am.adjoint_gradient(decay(1.0), ONE, 1.0, lambda u: u, 50, estimate_error=True)
    assert float(found.grad) == pytest.approx(math.exp(-2), rel=1e-3)
    assert found.status == "inaccurate"
    assert found.error_estimate == math.inf


def test_a_solve_that_is_differentiated_is_looked_into_unasked():
    options = {"forward": "rk4", "backward": "discrete"}
    rough = am.adjoint_gradient(decay(20.0), ONE, 1.0, torch.ones_like, 10, **options)  # exact: e^(-20)
    assert float(rough.grad) > 1e-5
    assert rough.status == "inaccurate"
    fine = am.adjoint_gradient(decay(1.0), ONE, 1.0, torch.ones_like, 10, **options)
    assert fine.status == "ok"
    assert fine.error_estimate < 1e-4
    assert (
        am.adjoint_gradient(decay(1.0), ONE, 1.0, torch.ones_like, 10, estimate_error=False, **options).error_estimate
        is None
    )


def test_a_solve_of_no_smaller_steps_clears_nothing_that_was_unstable(monkeypatch):
    """Stability decides on dopri5's steps whatever the tolerance, and rk4 is unstable along all of them."""
    monkeypatch.setattr(vector_field, "distance", lambda found, other, unit: torch.tensor(0.02))
    options = {"forward": "dopri5", "backward": "rk4", "rtol": 1e-2, "atol": 1e-2}
    found = am.adjoint_gradient(decay(60.0), ONE, 20.0, torch.ones_like, "accepted", **options)
    assert float(found.grad) > 1e10
    assert found.status == "diverged"
