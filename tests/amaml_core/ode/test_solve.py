import pytest
import scipy.integrate
import torch

import amaml_core as am

HORIZON = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
START = torch.tensor([[0.1, 0.4], [0.3, 0.2], [0.6, 0.9]], dtype=torch.float64)
ORDERS = {"euler": 1, "heun": 2, "rk4": 4}


def logistic(t, u):
    """u' = u(1−u)(1+t), whose solution is known: it needs the time, and each task's own."""
    return u * (1 - u) * (1 + t)


def exact(time):
    growth = torch.exp(time + time**2 / 2)
    return START * growth / (1 - START + START * growth)


def run(solver, num_states, **options) -> am.Trajectory:
    options = {"rtol": 1e-6, "atol": 1e-8, **options}
    return am.solve(logistic, START, HORIZON, solver=solver, num_states=num_states, **options)


@pytest.mark.parametrize("solver", ORDERS)
def test_fixed_grids_have_their_order(solver):
    errors = [(run(solver, k).states[-1] - exact(HORIZON[:, None])).norm() for k in (40, 80)]
    assert torch.log2(errors[0] / errors[1]).item() == pytest.approx(ORDERS[solver], abs=0.15)


@pytest.mark.parametrize("solver", ORDERS)
def test_fixed_grids_take_exactly_the_classical_steps(solver):
    u, h = START, HORIZON[:, None] / 3
    for j in range(3):
        t = j * h
        k1 = logistic(t, u)
        if solver == "euler":
            u = u + h * k1
        elif solver == "heun":
            u = u + h / 2 * (k1 + logistic(t + h, u + h * k1))
        else:
            k2 = logistic(t + h / 2, u + h / 2 * k1)
            k3 = logistic(t + h / 2, u + h / 2 * k2)
            u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + logistic(t + h, u + h * k3))
    path = run(solver, 3)
    assert torch.allclose(path.states[-1], u, rtol=1e-14)
    assert (path.steps, path.rejected, len(path.states)) == (3, 0, 4)


@pytest.mark.parametrize("solver", am.SOLVERS)
def test_every_solver_tracks_equal_intervals_of_each_horizon(solver):
    path = run(solver, 40)
    assert torch.allclose(path.times, torch.linspace(0, 1, 41, dtype=torch.float64)[:, None] * HORIZON)
    expected = torch.stack([exact(t[:, None]) for t in path.times])
    tolerance = 2e-2 if solver == "euler" else 2e-4
    assert torch.allclose(torch.stack(list(path.states)), expected, atol=tolerance)


@pytest.mark.parametrize("solver", am.SOLVERS)
def test_keeping_only_the_ends_changes_nothing_but_memory(solver):
    ends, whole = run(solver, 40, keep=False), run(solver, 40)
    assert len(ends.states) == len(ends.times) == 2
    assert torch.equal(ends.times[-1], HORIZON)
    assert torch.allclose(ends.states[-1], whole.states[-1], atol=1e-5)


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "rk43"])
def test_accepted_steps_are_the_solvers_own(solver):
    path = run(solver, "accepted")
    assert len(path.states) == len(path.times) == path.steps + 1
    assert (path.times.diff(dim=0) > 0).all()
    assert torch.equal(path.times[[0, -1]], torch.stack([torch.zeros_like(HORIZON), HORIZON]))
    assert torch.allclose(torch.stack(path.states), torch.stack([exact(t[:, None]) for t in path.times]), atol=1e-5)


def test_every_accepted_point_is_a_step_of_the_scheme_and_none_an_interpolant():
    path = run("bosh3", "accepted")
    for j in range(path.steps):
        t, u, h = path.times[j, :, None], path.states[j], path.times.diff(dim=0)[j, :, None]
        k1 = logistic(t, u)
        k2 = logistic(t + h / 2, u + h / 2 * k1)
        k3 = logistic(t + 3 * h / 4, u + 3 * h / 4 * k2)
        assert torch.allclose(path.states[j + 1], u + h / 9 * (2 * k1 + 3 * k2 + 4 * k3), rtol=1e-12)


def test_rtol_governs_the_error():
    errors = [
        float((run("dopri5", 1, rtol=r, atol=r).states[-1] - exact(HORIZON[:, None])).norm()) for r in (1e-4, 1e-10)
    ]
    assert errors[0] > 1e3 * errors[1]
    assert errors[1] < 1e-8


def test_a_task_is_solved_as_if_it_were_alone():
    together = run("dopri5", 10, rtol=1e-9, atol=1e-11).states[-1]
    for b in range(3):
        reference = scipy.integrate.solve_ivp(
            lambda t, u: u * (1 - u) * (1 + t), (0, float(HORIZON[b])), START[b].numpy(), rtol=1e-12, atol=1e-13
        )
        assert torch.allclose(together[b], torch.from_numpy(reference.y[:, -1]), atol=1e-8)


def test_a_solver_that_gives_up_says_so():
    with pytest.raises(am.SolverFailedError):
        am.solve(lambda t, u: u**2, START + 1, 50 * HORIZON, solver="dopri5", num_states=3, rtol=1e-6, atol=1e-8)


def test_the_steps_of_a_whole_solve_are_bounded_not_those_between_two_points():
    with pytest.raises(am.SolverFailedError, match="more than 5 steps"):
        run("dopri5", 50, rtol=1e-10, atol=1e-12, max_steps=5)
