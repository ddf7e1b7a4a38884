import math

import numpy as np
import pytest
import scipy.integrate
import torch
from oracles import differences, relative

import amaml_core as am
from amaml_core.ode.adjoint import gradient_order

TIGHT = {"forward": "dopri8", "rtol": 1e-12, "atol": 1e-13}
ORDERS = {
    "euler": (1.0, 0.1, 320),
    "modified_euler": (2.0, 0.1, 320),
    "rk4": (4.0, 0.3, 40),
}  # and the states to see it at
FORWARDS = {"euler": "euler", "modified_euler": "heun", "rk4": "rk4"}


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def published(t, y):
    """The ODE of Li et al. 2023, eq. 11, with the sign that its stated solution needs."""
    return -2 * t**3 - 2 * t * y


def published_gradient(y0, horizon):
    end = 1 - horizon**2 + (y0 - 1) * math.exp(-(horizon**2))
    return 6 * (end - 3) ** 5 * math.exp(-(horizon**2))


def logistic(t, y):
    return y * (1 - y)


def logistic_gradient(y0, horizon):
    """d/dy0 of y(T)²/2."""
    decay = math.exp(-horizon)
    return y0 / (y0 + (1 - y0) * decay) * decay / (y0 + (1 - y0) * decay) ** 2


def swirl(t, u):
    """Two components, nonlinear in u, and not autonomous."""
    x, y = u[0], u[1]
    return torch.stack([-t * x + torch.sin(y), x * y - y**3 + torch.cos(t)])


def swirl_gradient(u0, horizon):
    """d/du0 of Σ u(T)²/2 by differences through DOP853."""

    def objective(start):
        def slope(t, u):
            return [-t * u[0] + math.sin(u[1]), u[0] * u[1] - u[1] ** 3 + math.cos(t)]

        solution = scipy.integrate.solve_ivp(
            slope, (0, horizon), start.numpy(), method="DOP853", rtol=1e-13, atol=1e-14
        )
        return 0.5 * float(np.square(solution.y[:, -1]).sum())

    return differences(objective, u0, torch.eye(2, dtype=torch.float64))


NONLINEAR = {
    "logistic": (logistic, double(0.1), 3.0, logistic_gradient(double(0.1), 3.0)),
    "swirl": (swirl, double(0.7, -0.4), 1.5, swirl_gradient(double(0.7, -0.4), 1.5)),
}


@pytest.mark.parametrize("horizon", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("backward", ["rk4", "backsolve"])
def test_published_ode_is_solved(horizon, backward):
    y0 = double(-0.3, 0.9, 1.4)
    end, found = am.adjoint_gradient(
        published, y0, horizon, lambda y: 6 * (y - 3) ** 5, num_states=400, backward=backward, **TIGHT
    )
    assert torch.allclose(end, 1 - horizon**2 + (y0 - 1) * math.exp(-(horizon**2)), rtol=1e-9)
    assert relative(found, published_gradient(y0, horizon)) < 1e-7


@pytest.mark.parametrize(("horizon", "states", "expected"), [(2.0, 10, 3.79e-1), (0.5, 100, 4.9e-7)])
def test_published_ode_has_the_error_worked_out_by_hand(horizon, states, expected):
    h, factor = horizon / states, 1.0
    for j in range(states):  # modified Euler multiplies λ by this; the Jacobian −2t does not see the state
        factor *= 1 - h * (2 * j + 1) * h + 2 * h**2 * (j * h) * ((j + 1) * h)
    y0 = double(0.25)
    _, found = am.adjoint_gradient(published, y0, horizon, lambda y: 6 * (y - 3) ** 5, states, **TIGHT)
    error = relative(found, published_gradient(y0, horizon))
    assert error == pytest.approx(abs(factor / math.exp(-(horizon**2)) - 1), rel=1e-3)
    assert error == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", NONLINEAR)
@pytest.mark.parametrize("backward", ORDERS)
@pytest.mark.parametrize("exact_forward", [True, False])
def test_observed_order(name, backward, exact_forward):
    f, u0, horizon, expected = NONLINEAR[name]
    forward = TIGHT if exact_forward else {"forward": FORWARDS[backward]}
    order, tolerance, states = ORDERS[backward]
    errors = [
        relative(am.adjoint_gradient(f, u0, horizon, lambda u: u, k, backward=backward, **forward)[1], expected)
        for k in (states, 2 * states)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=tolerance)


@pytest.mark.parametrize("name", NONLINEAR)
@pytest.mark.parametrize("backward", ["modified_euler", "rk4", "backsolve"])
def test_accepted_steps(name, backward):
    f, u0, horizon, expected = NONLINEAR[name]
    errors = [
        relative(
            am.adjoint_gradient(
                f, u0, horizon, lambda u: u, "accepted", forward="bosh3", backward=backward, rtol=rtol, atol=rtol / 10
            )[1],
            expected,
        )
        for rtol in (1e-4, 1e-9)
    ]
    assert errors[1] < 1e-4
    assert errors[0] > 20 * errors[1]


@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (1, 3, 2)])
@pytest.mark.parametrize("backward", am.BACKWARDS)
def test_any_shape(shape, backward):
    u0 = torch.linspace(0.2, 0.8, math.prod(shape), dtype=torch.float64).reshape(shape)
    seen = set()

    def field(t, u):
        seen.add((t.shape, t.dtype, u.shape))
        return u * (1 - u)

    end, found = am.adjoint_gradient(field, u0, 1.0, lambda u: u, 500, forward="rk4", backward=backward)
    assert seen == {(torch.Size([]), torch.float64, torch.Size(shape))}
    assert end.shape == found.shape == u0.shape
    assert torch.allclose(found, logistic_gradient(u0, 1.0), rtol=2e-3)


def test_a_field_that_ignores_the_state_keeps_the_gradient():
    end, found = am.adjoint_gradient(lambda t, u: torch.cos(t).expand(2), double(1, 2), 1.0, lambda u: u, 9)
    assert torch.allclose(end, double(1, 2) + math.sin(1), rtol=1e-6)
    assert torch.equal(found, end)


@pytest.mark.parametrize("forward", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("name", NONLINEAR)
def test_autodiff_differentiates_its_own_steps(name, forward):
    f, u0, horizon, _ = NONLINEAR[name]

    def solve(start):
        u, h = start, horizon / 7
        for j in range(7):
            t = torch.tensor(j * h, dtype=torch.float64)
            k1 = f(t, u)
            if forward == "euler":
                u = u + h * k1
            elif forward == "heun":
                u = u + h / 2 * (k1 + f(t + h, u + h * k1))
            else:
                k2 = f(t + h / 2, u + h / 2 * k1)
                k3 = f(t + h / 2, u + h / 2 * k2)
                u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(t + h, u + h * k3))
        return u

    end, found = am.autodiff_gradient(f, u0, horizon, lambda u: u, 7, forward=forward)
    expected = differences(lambda u: 0.5 * solve(u).square().sum(), u0, torch.eye(len(u0), dtype=torch.float64))
    assert torch.allclose(end, solve(u0), rtol=1e-13)
    assert relative(found, expected) < 1e-8


@pytest.mark.parametrize("name", NONLINEAR)
def test_euler_both_ways_is_autodiff_through_euler(name):
    f, u0, horizon, _ = NONLINEAR[name]
    _, adjoint = am.adjoint_gradient(f, u0, horizon, lambda u: u**3, 13, forward="euler", backward="euler")
    _, autodiff = am.autodiff_gradient(f, u0, horizon, lambda u: u**3, 13, forward="euler")
    assert relative(adjoint, autodiff) < 1e-12


def test_nothing_is_changed_and_no_graph_is_left():
    u0 = double(0.2, 0.3).requires_grad_()
    for end, found in (
        am.adjoint_gradient(logistic, u0, 1.0, lambda u: u, 5),
        am.autodiff_gradient(logistic, u0, 1.0, lambda u: u, 5),
    ):
        assert not end.requires_grad
        assert not found.requires_grad
    assert u0.grad is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"t1": 0.0}, "t1=0.0"),
        ({"t1": float("nan")}, "t1=nan"),
        ({"num_states": 0}, "num_states=0"),
        ({"num_states": 2.0}, r"num_states=2\.0"),
        ({"num_states": True}, "num_states=True"),
        ({"forward": "dopri55"}, "forward='dopri55'.*dopri5"),
        ({"backward": "forward"}, "backward='forward'.*modified_euler"),
        ({"forward": "rk4", "num_states": "accepted"}, '"accepted" needs an adaptive.*rk4'),
        ({"rtol": 0.0}, r"rtol=0\.0"),
        ({"atol": -1.0}, r"atol=-1\.0"),
    ],
)
def test_bad_options_are_refused_by_name(change, named):
    options = {"t1": 1.0, "num_states": 5, **change}
    with pytest.raises(am.InputError, match=named):
        am.adjoint_gradient(logistic, double(0.5), terminal_grad=lambda u: u, **options)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"forward": "dopri5"}, "forward='dopri5'.*euler, heun, rk4"),
        ({"num_states": 0}, "num_states=0"),
        ({"num_states": "accepted"}, "num_states='accepted'"),
        ({"t1": -1.0}, r"t1=-1\.0"),
    ],
)
def test_autodiff_refuses_bad_options_by_name(change, named):
    options = {"t1": 1.0, "num_states": 5, **change}
    with pytest.raises(am.InputError, match=named):
        am.autodiff_gradient(logistic, double(0.5), terminal_grad=lambda u: u, **options)


@pytest.mark.parametrize(
    ("forward", "backward", "order"),
    [
        ("rk4", "rk4", 4),
        ("rk4", "modified_euler", 2),
        ("heun", "discrete", 2),
        ("dopri5", "rk4", 4),
        ("rk43", "discrete", 4),
        ("rkg2", "discrete", 1),  # stabilised steps are taken where λ is far from their order
        ("explicit_adams", "modified_euler", 2),
    ],
)
def test_the_order_of_a_gradient_is_the_lower_of_both_ways(forward, backward, order):
    assert gradient_order(forward, backward) == order
