"""Our adaptive schemes: their order, their stability, what they tell of a step, and what the way back makes of it."""

import math
from functools import partial

import numpy as np
import oracles
import pytest
import torch

import amaml_core as am
from amaml_core.ode.adaptive import MAX_STAGES, RK4Step, StabilizedStep

ONE = torch.ones(1, 1, dtype=torch.float64)
TOLERANCE = torch.tensor([1e-3, 1e-3], dtype=torch.float64)
STEPS = {"rk43": (RK4Step(), 4), **{f"rkc2-{s}": (StabilizedStep(s), 2) for s in (2, 3, 8, MAX_STAGES)}}


def take(step, f, u, t, h):
    """One step of h from (t, u)."""
    system = am.System(f)
    return step(system, u, f(t, u), t, h, TOLERANCE)


def moving(t, u):
    """u' = u cos t, not autonomous: u = u0 exp(sin t)."""
    return u * torch.cos(t)


@pytest.mark.parametrize("name", STEPS)
def test_order(name):
    step, order = STEPS[name]
    errors = []
    for count in (20, 40):
        h, u = ONE * 2 / count, ONE
        for j in range(count):
            u = take(step, moving, u, j * h, h)[0]
        errors.append(abs(float(u) - math.exp(math.sin(2.0))))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", STEPS)
def test_the_error_that_a_step_tells_has_the_order_of_its_comparison(name):
    step, _ = STEPS[name]
    told = [float(take(step, moving, ONE, 0.3 * ONE, h * ONE)[2][0]) for h in (0.1, 0.05)]
    assert math.log2(told[0] / told[1]) == pytest.approx(step.order + 1, abs=0.3)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_damps_every_mode_that_it_bears_and_not_much_more(name):
    step, _ = STEPS[name]
    modes = torch.linspace(0.01, 1.0, 400, dtype=torch.float64)[None] * step.bears
    factor = take(step, lambda t, u: -modes * u, torch.ones_like(modes), 0 * ONE, ONE)[0]
    assert float(factor.abs().max()) < 1.0
    beyond = take(step, lambda t, u: -1.25 * step.bears * u, ONE, 0 * ONE, ONE)[0]
    assert float(beyond.abs()) > 1.0


def test_rk43_tells_the_stiffness_that_it_meets():
    modes = torch.tensor([[1.0, 3.0, 40.0]], dtype=torch.float64)
    judgement = take(RK4Step(), lambda t, u: -modes * u, torch.ones_like(modes), 0 * ONE, 0.05 * ONE)[2]
    assert 0.5 * 0.05 * 40 < float(judgement[1]) <= 0.05 * 40 * (1 + 1e-9)


def stiff(t, u):
    """Two modes, one fifty times the other, and a coupling that is not linear."""
    return torch.stack([-u[..., 0] + 0.2 * torch.sin(u[..., 1]), -50 * (u[..., 1] - u[..., 0] ** 2)], dim=-1)


def differences(f, u0, horizon):
    """d(½|u(T)|²)/du0 by central differences of SciPy's solution."""
    import scipy.integrate

    def objective(start):
        field = lambda t, u: f(torch.tensor(t), torch.from_numpy(u)).numpy()  # noqa: E731
        end = scipy.integrate.solve_ivp(field, (0, horizon), start, method="LSODA", rtol=1e-11, atol=1e-12).y[:, -1]
        return 0.5 * float(np.square(end).sum())

    unit = 1e-5 * np.eye(len(u0))
    return torch.tensor([(objective(u0 + e) - objective(u0 - e)) / 2e-5 for e in unit], dtype=torch.float64)


@pytest.mark.parametrize("solver", ["rk43", "rkc2"])
@pytest.mark.parametrize("backward", ["discrete", "rk4"])
def test_gradients_of_a_stiff_system_converge_with_the_tolerance(solver, backward):
    u0 = torch.tensor([1.2, 0.3], dtype=torch.float64)
    expected = differences(stiff, u0.numpy(), 2.0)
    errors = []
    for rtol in (1e-2, 1e-5):
        options = {"forward": solver, "backward": backward, "rtol": rtol, "atol": rtol / 10}
        _, found = am.adjoint_gradient(stiff, u0, 2.0, lambda u: u, "accepted", **options)
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < min(2e-3, errors[0] / 5)


def test_the_way_back_is_stable_where_the_way_out_alone_would_not_care():
    """λ(T) = (1, 1) holds the fast mode, which the trajectory has long forgotten."""
    fast = torch.tensor([[1.0, 1000.0]], dtype=torch.float64)
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # at rest in the fast mode
    kept = {"solver": "rk43", "num_states": "accepted", "rtol": 1e-3, "atol": 1e-6}
    horizon = torch.ones(1, dtype=torch.float64)
    first = am.solve(lambda t, u: -fast * (u - 1e-9), start, horizon, **kept)
    assert float(first.times.diff(dim=0).max()) * 1000 < 1.3 * RK4Step.bears


def test_the_last_steps_damp_what_the_way_back_starts_with():
    """λ(T) has parts in stiff directions, which steps at the limit carry along: 2e-3 here."""
    case = oracles.regression()
    made = partial(am.create_method, "amaml", inner_steps=100, inner_lr=0.05, backward="discrete")
    adaptive = made(forward="rk43", num_states="accepted", rtol=1e-2, atol=1e-5)
    every = made(forward="rk4", num_states=500).meta_gradient(case.problem, case.theta, case.tasks)
    for task, exact in zip(case.tasks.chunks(1), every.task_grads, strict=True):
        found = adaptive.meta_gradient(case.problem, case.theta, task)
        assert found.stats["forward_steps"] < 20
        assert float((found.grad - exact).norm() / exact.norm()) < 6e-4


def test_the_chebyshev_scheme_needs_far_fewer_steps_on_a_stiff_system():
    u0, horizon = torch.tensor([[1.2, 0.3]], dtype=torch.float64), torch.full((1,), 20.0, dtype=torch.float64)
    options = {"num_states": "accepted", "rtol": 1e-2, "atol": 1e-3}
    steps = {name: am.solve(stiff, u0, horizon, solver=name, **options).steps for name in ("rk43", "rkc2")}
    assert steps["rkc2"] < steps["rk43"] / 3


def test_a_fast_mode_at_rest_does_not_blow_up_the_differentiated_chebyshev_steps():
    fast = torch.tensor([1.0, 1000.0], dtype=torch.float64)
    options = {"forward": "rkc2", "backward": "discrete", "rtol": 1e-3, "atol": 1e-6}
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    _, found = am.adjoint_gradient(lambda t, u: -fast * u, start, 1.0, torch.ones_like, "accepted", **options)
    assert float(found[1].abs()) < 1e-2
    assert float(found[0]) == pytest.approx(math.exp(-1), rel=1e-3)


@pytest.mark.parametrize("onset", [0.31, 0.5, 0.77])
def test_chebyshev_steps_bear_a_stiffness_that_sets_in_between_two_of_them(onset):
    def stiffening(t, u):
        fast = 10 + 3000 * torch.sigmoid(100 * (t - onset))
        return -torch.cat([u[..., :1], fast * u[..., 1:]], -1)

    options = {"forward": "rkc2", "backward": "discrete", "rtol": 1e-2, "atol": 1e-4}
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    _, found = am.adjoint_gradient(stiffening, start, 1.0, torch.ones_like, "accepted", **options)
    assert float(found[1].abs()) < 0.05  # exact: less than exp(-600)
    assert float(found[0]) == pytest.approx(math.exp(-1), rel=1e-2)


def test_rounding_at_a_converged_point_is_not_taken_for_stiffness():
    modes = torch.linspace(0.01, 10, 50)[None]
    start, horizon = torch.ones(1, 50), torch.full((1,), 200.0)
    options = {"solver": "rk43", "num_states": "accepted", "rtol": 1e-3, "atol": 1e-6, "max_stiffness": 1.8}
    path = am.solve(lambda t, u: -modes * (u - 3.0), start, horizon, **options)
    assert path.steps + path.rejected < 3 * 200 * 10 / 1.8


@pytest.mark.parametrize("solver", ["rk43", "rkc2"])
def test_an_adaptive_solve_at_rest_takes_one_step(solver):
    path = am.solve(
        lambda t, u: 0 * u, torch.ones(2, 3), torch.ones(2), solver=solver, num_states="accepted", rtol=1e-3, atol=1e-3
    )
    assert path.steps == 1
    assert torch.equal(path.states[-1], torch.ones(2, 3))


@pytest.mark.parametrize("solver", ["rk43", "rkc2"])
def test_an_explosion_is_given_up(solver):
    start, horizon = torch.full((1, 2), 2.0, dtype=torch.float64), torch.full((1,), 9.0, dtype=torch.float64)
    with pytest.raises(am.SolverFailedError):
        am.solve(lambda t, u: u**2, start, horizon, solver=solver, num_states="accepted", rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("forward", ["euler", "heun", "rk4", "rk43", "rkc2"])
def test_the_discrete_adjoint_is_the_gradient_of_the_computed_end(forward):
    """Autograd through the very steps that were taken, replayed in one graph."""
    u0 = torch.tensor([1.2, 0.3], dtype=torch.float64)
    states = "accepted" if forward.startswith("rk") and forward != "rk4" else 60
    options = {"num_states": states, "rtol": 1e-2, "atol": 1e-3}
    end, found = am.adjoint_gradient(stiff, u0, 1.0, lambda u: u**3, forward=forward, backward="discrete", **options)
    path = am.solve(
        lambda t, u: stiff(t.reshape(()), u), u0[None], torch.ones(1, dtype=torch.float64), solver=forward, **options
    )
    start = u = u0[None].clone().requires_grad_()
    for j, step in enumerate(path.taken):
        t, h = path.times[j, :, None], path.times.diff(dim=0)[j, :, None]
        (u,) = step(am.System(lambda t, u: stiff(t.reshape(()), u)), u, t, h)
    (expected,) = torch.autograd.grad(u, start, (u**3).detach())
    assert torch.allclose(u[0], end, rtol=1e-12)
    assert torch.allclose(found, expected[0], rtol=1e-10)


@pytest.mark.parametrize(("forward", "states"), [("dopri5", "accepted"), ("rk43", 10), ("bosh3", 10)])
def test_a_way_out_whose_steps_are_not_kept_has_no_discrete_adjoint(forward, states):
    with pytest.raises(am.InputError, match=r"discrete.*needs the steps"):
        am.adjoint_gradient(stiff, torch.ones(2), 1.0, lambda u: u, states, forward=forward, backward="discrete")
