"""Flows of one or two numbers whose gradients are known by hand, and networks against finer solves."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from torch import nn

import amaml_core as am
from amaml_core.methods.accuracy import RECHECKED, Cleared, cleared, estimated
from amaml_core.methods.amaml import FEW

D = torch.float64
ACCEPTED = {"num_states": "accepted"}


class Point(nn.Module):
    """Whose output is its parameter: the loss is a function of it."""

    def __init__(self, start, unused=0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=D))
        if unused:
            self.unused = nn.Parameter(torch.zeros(unused, dtype=D))

    def forward(self, x):
        return self.w.expand(len(x), -1)


def run(start, inner, outer, horizon, steps, unused=0, dtype=D, **options):
    model = Point(start, unused).to(dtype)
    problem = am.MetaProblem(model, inner_loss=lambda p, y: inner(p[0]), outer_loss=lambda p, y: outer(p[0]))
    zero = torch.zeros(1, 1, len(start), dtype=dtype)
    method = am.create_method("amaml", inner_steps=steps, inner_lr=horizon / steps, **options)
    return method.meta_gradient(problem, problem.initial_parameters(), am.TaskBatch(zero, zero, zero, zero))


def quadratic(*curvatures):
    return lambda u: 0.5 * (torch.tensor(curvatures, dtype=u.dtype) * u * u).sum()


def norm(u):
    return 0.5 * u.square().sum()


def quartic(u):
    return (u**4).sum() / 4


def kinked(u):
    return (3 * u.relu() + u).sum()


QUARTIC_GRAD = 401**-1.5  # u(T) = u₀ (1 + 2 u₀² T)^(-1/2) at u₀ = 10, T = 2


# what is wrong is told


@pytest.mark.parametrize(
    ("start", "inner", "outer", "horizon", "steps", "options"),
    [
        ([1.0, 1.0], quadratic(1, 30), norm, 1.0, 10, {"forward": "heun", "backward": "discrete"}),
        ([1.0, 1.0], quadratic(1, 30), norm, 3.0, 60, {"forward": "explicit_adams"}),
        ([10.0], quartic, torch.sum, 2.0, 200, {}),
        ([1.0], kinked, torch.sum, 1.0, 200, {"rtol": 1e-8}),
        ([1.0], kinked, torch.sum, 1.0, 200, {"forward": "rk43", "backward": "rk4", "rtol": 1e-8, **ACCEPTED}),
        # at an optimum of the support loss ⟨λ, f⟩ is zero all along
        ([0.0], quadratic(20.0), torch.sum, 1.0, 10, {"forward": "rk4", "backward": "rk4", "num_states": 8}),
    ],
    ids=["heun", "adams", "quartic", "kink", "kink-rk43", "equilibrium"],
)
def test_a_wrong_gradient_is_not_ok(start, inner, outer, horizon, steps, options):
    found = run(start, inner, outer, horizon, steps, **options)
    assert found.status[0] in ("inaccurate", "diverged")
    assert found.status[0].remedy


def test_steps_that_hardly_damp_are_looked_into():
    """⟨λ, f⟩ says nothing of a fast mode at rest, of which ten steps at the limit of stability leave a share."""
    outer = lambda u: u[0] + 20 * u[1]  # noqa: E731
    options = {"forward": "rk4", "backward": "rk4"}
    found = run([1.0, 0.0], quadratic(0.5, 25), outer, 1.0, 10, **options)
    assert float(found.defect) < 1e-3
    assert float(found.grad[1]) > 0.1  # exact: 20 e^(-25)
    assert found.status[0] == "inaccurate"
    assert cleared(found, Cleared(9, 1.0, am.Status("ok")), doubt=True) is None  # it is looked into each time
    fine = run([1.0, 0.0], quadratic(0.5, 25), outer, 1.0, 40, **options)
    assert fine.status[0] == "ok"
    assert float(fine.grad[1]) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("unasked", [None, False])
def test_the_defect_alone_tells_too(unasked):
    found = run([10.0], quartic, torch.sum, 2.0, 200, estimate_error=unasked)
    assert float(found.grad) > 2 * QUARTIC_GRAD
    assert found.status[0] == "diverged"  # the first steps are unstable, both ends of an interval seen
    assert float(found.defect) > 0.5
    assert (found.error_estimate is None) == (unasked is False)


@pytest.mark.parametrize("states", [5, 12])
def test_the_remedies_for_too_few_states_work(states):
    found = run([1.0], quadratic(8), torch.sum, 1.0, 50, num_states=states)
    assert found.status[0] == "inaccurate"
    more = int(found.status[0].remedy.split("num_states to ")[1].split(",")[0])
    for options in ({"num_states": more}, {"grad_rtol": 0.01}):
        mended = run([1.0], quadratic(8), torch.sum, 1.0, 50, **options)
        assert float(mended.grad) == pytest.approx(math.exp(-8), rel=0.1)
        assert mended.status[0] == "ok"


def test_kinks_are_told_from_errors_of_the_solve():
    """The true gradient is 0.25, with the jump at the kink; the almost-everywhere derivative is 1."""
    found = run([1.0], kinked, torch.sum, 1.0, 200, forward="rk43", backward="rk4", rtol=1e-8, **ACCEPTED)
    assert float(found.adapted) == pytest.approx(-0.75, abs=1e-5)
    assert "kinks" in found.status[0].remedy
    assert "maml" in found.status[0].remedy


def test_products_that_are_nearly_zero_are_no_kinks():
    """dJ/dT = 0: the two ends have nothing in common but errors of the solve, and the defect is 1 at any resolution."""
    slope = torch.tensor([5**-1.5, math.exp(-2)], dtype=D)  # −f(u(T)), and du(T)/du(0), of ¼u₁⁴ + ½u₂² from (1, 1)
    across = slope.flip(0) * torch.tensor([1.0, -1.0], dtype=D)
    inner, outer = lambda u: u[0] ** 4 / 4 + u[1] ** 2 / 2, lambda u: across @ u
    found = run([1.0, 1.0], inner, outer, 2.0, 40, forward="rk4", backward="modified_euler")
    assert float(found.defect) > 0.5
    assert torch.allclose(found.grad, across * slope, rtol=2e-3)
    assert found.status[0] == "ok"
    assert found.error_estimate is not None
    assert float(found.error_estimate) < 1e-2


def test_a_kink_between_the_stages_is_not_stepped_over():
    flow = lambda t, u: torch.where(u > 0, -4.0, -1.0).to(u.dtype)  # noqa: E731
    for start in torch.linspace(0.05, 3.9, 60, dtype=D):
        path = am.solve(
            flow, start.reshape(1, 1), torch.ones(1, dtype=D), solver="rk43", num_states=1, rtol=1e-6, atol=1e-8
        )
        exact = -(1 - start / 4) if start < 4 else start - 4
        assert float(path.states[-1]) == pytest.approx(float(exact), abs=2e-3), float(start)


# what is right is right, and ok


@pytest.mark.parametrize("rtol", [1e-2, 1e-5])
def test_at_an_optimum_the_steps_mind_the_adjoint(rtol):
    options = {"forward": "rk43", "backward": "rk4", "rtol": rtol, **ACCEPTED}
    found = run([0.0, 0.0], quadratic(1, 1), torch.sum, 2.5, 10, **options)
    assert found.grad.tolist() == pytest.approx([math.exp(-2.5)] * 2, rel=20 * rtol)
    assert found.status[0] == "ok"


@pytest.mark.parametrize("forward", ["rkc2", "rkg2"])
def test_a_stiff_mode_at_rest_is_damped_on_the_way_back(forward):
    outer = lambda u: 0.5 * u[0] ** 2 - u[1]  # noqa: E731
    options = {"forward": forward, "backward": "discrete", "rtol": 1e-2, **ACCEPTED}
    found = run([1.0, 0.0], quadratic(1, 20), outer, 2.0, 200, **options)
    assert found.grad.tolist() == pytest.approx([math.exp(-4), 0.0], abs=1e-3)
    assert found.status[0] == "ok"


def test_unused_parameters_hide_nothing():
    options = {"forward": "rk43", "backward": "rk4", "rtol": 1e-3, **ACCEPTED}
    lone, beside = (run([2.0], quartic, torch.sum, 2.0, 50, unused, **options) for unused in (0, 100_000))
    assert lone.stats["forward_steps"] == beside.stats["forward_steps"]
    assert float(beside.grad[0]) == pytest.approx(float(lone.grad[0]), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_that_rounds_the_steps_away_is_refused(dtype):
    with pytest.raises(am.InputError, match="float32"):
        run([1.0], norm, torch.sum, 1.0, 10, dtype=dtype)


def test_a_long_stiff_horizon_is_no_alarm():
    """Steps beyond the limit of stability at one end, in a mode that has nothing to say: a quarter of a percent off."""
    outer = lambda u: u[0] + 1e-3 * u[1]  # noqa: E731
    found = run([1.0, 0.0], quadratic(0.01, 1.0), outer, 100.0, 1000, num_states=400)
    assert float(found.grad[0]) == pytest.approx(math.exp(-1), rel=2.5e-3)
    assert found.status[0] == "ok"


# the estimate


@pytest.mark.parametrize(
    "options",
    [
        {"num_states": 20},
        {"forward": "rk4", "backward": "rk4", "num_states": 12},
        {"forward": "heun", "backward": "discrete", "num_states": 20},
        {"forward": "rk43", "backward": "rk4", "rtol": 1e-2, **ACCEPTED},
        {"forward": "rkg2", "backward": "discrete", "rtol": 1e-2, **ACCEPTED},
    ],
    ids=str,
)
def test_the_estimate_covers_the_error(regression, flow_gradient, options):
    method = am.create_method("amaml", inner_steps=40, inner_lr=0.05, estimate_error=True, **options)
    found = method.meta_gradient(regression.problem, regression.theta, regression.tasks)
    exact = flow_gradient(regression, 2.0)
    error = (found.task_grads - exact).norm(dim=1) / exact.norm(dim=1)
    assert set(found.status) == {"ok"}
    assert bool((error <= 3 * found.error_estimate).all()), (error, found.error_estimate)
    assert bool((found.error_estimate < 0.1).all())


def test_prox_leaves_the_defect_small(regression):
    method = am.create_method("amaml", inner_steps=40, inner_lr=0.05, prox=1.5, backward="rk4", rtol=1e-9, atol=1e-11)
    found = method.meta_gradient(regression.problem, regression.theta, regression.tasks)
    assert float(found.defect.max()) < 1e-4
    assert set(found.status) == {"ok"}
    assert found.error_estimate is None  # nobody asked, and nothing was in doubt


def test_a_discrete_target_has_neither(regression):
    for name, options in [("maml", {}), ("amaml", {"forward": "euler", "backward": "euler"})]:
        method = am.create_method(name, inner_steps=5, inner_lr=0.05, **options)
        found = method.meta_gradient(regression.problem, regression.theta, regression.tasks)
        assert found.defect is found.error_estimate is None


def test_a_task_in_doubt_leaves_the_status_of_the_others(regression):
    tasks = replace(regression.tasks, horizon=torch.tensor([0.5, 40.0, 1.0], dtype=D))
    method = am.create_method("amaml", inner_steps=40, inner_lr=0.05, num_states=12, forward="rk4")
    found = method.meta_gradient(regression.problem, regression.theta, tasks)
    assert found.status[0] == found.status[2] == "ok"
    assert found.status[1] in ("diverged", "inaccurate")


# what it costs


def test_kinks_are_looked_into_once_in_many_updates():
    torch.manual_seed(0)
    case = oracles.regression()
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    problem = am.MetaProblem(model, case.loss)
    method = am.create_method("amaml", inner_steps=20, inner_lr=0.1, forward="rk4", backward="rk4")
    theta = problem.initial_parameters()
    every = [method.meta_gradient(problem, theta, case.tasks) for _ in range(RECHECKED + 2)]
    assert len({one.status for one in every}) == 1
    assert "inaccurate" in every[0].status
    costs = [one.stats["grad_evals"] for one in every]
    assert costs[0] == costs[-1] > 1.4 * costs[1]
    assert set(costs[1:-1]) == {costs[1]}
    assert len({one.grad.sum().item() for one in every}) == 1


def test_a_solve_that_is_differentiated_is_looked_into_unasked(regression):
    options = {"forward": "rk4", "backward": "discrete", "num_states": 10}
    method = am.create_method("amaml", inner_steps=10, inner_lr=0.05, **options)
    every = [method.meta_gradient(regression.problem, regression.theta, regression.tasks) for _ in range(RECHECKED + 2)]
    assert {one.status for one in every} == {("ok",) * len(regression.tasks)}
    assert [number for number, one in enumerate(every) if one.error_estimate is not None] == [0, RECHECKED + 1]
    never = replace(method, estimate_error=False)
    problem = am.MetaProblem(regression.model, regression.loss)
    assert never.meta_gradient(problem, regression.theta, regression.tasks).error_estimate is None


def test_a_few_wide_steps_are_looked_into_unasked():
    options = {"forward": "rk43", "backward": "rk4", "rtol": 0.5} | ACCEPTED
    few = run([1.0], quadratic(1.0), norm, 1.0, 10, **options)
    many = run([1.0], quadratic(1.0), norm, 20.0, 200, **options)
    assert few.stats["forward_steps"] <= FEW < many.stats["forward_steps"]
    assert few.error_estimate is not None
    assert many.error_estimate is None
    assert few.status == many.status == ("ok",)


def test_a_loss_with_kinks_is_looked_into_unasked():
    def run_on(activation):  # which the trajectory from 1 to 0.4 stays on one side of
        return run([1.0], lambda u: (0.5 * u * activation(u)).sum(), norm, 1.0, 10, forward="rk4", backward="rk4")

    kinked, smooth = run_on(torch.relu), run_on(lambda u: u)
    assert kinked.error_estimate is not None
    assert smooth.error_estimate is None
    assert kinked.status == smooth.status == ("ok",)
    assert torch.allclose(kinked.grad, smooth.grad)


def estimate_of(out, coarse, fine=None, **more):
    again = {0.5: coarse, 2.0: fine}
    return estimated(
        out, again.get, **{"order": 4, "kinked": False, "overrule": True, "remedy": lambda _: "raise num_states"} | more
    )


def made(grad, steps, mismatch, told="ok"):
    """A gradient of one number, whose defect is its mismatch."""
    one, grad = torch.ones(1, dtype=D), torch.tensor([[grad]], dtype=D)
    status, stats = (am.Status(told, "lower rtol."),), {"forward_steps": steps, "states_stored": steps + 1}
    about = {"horizon_grad": one, "defect": mismatch * one, "mismatch": mismatch * one}
    return am.MetaGradient(grad, one, one, status, stats, grad, {"theta": grad[0]}, **about)


def test_what_diverged_is_not_looked_into_for_being_unproven():
    options = {"forward": "rk4", "backward": "discrete", "num_states": 40}
    lost = run([1.0], lambda u: -(u**4).sum(), norm, 20.0, 40, **options)  # u' = 4u³ leaves the finite numbers
    assert lost.status[0] == "diverged"
    assert lost.error_estimate is None


@pytest.mark.parametrize(("mismatch", "share"), [(0.9, 0.5), (0.35, 1.0)])
def test_across_kinks_no_order_is_believed(mismatch, share):
    """The mismatch is 0.3; one of 0.9 at half the resolution is an error of the solve, and one of 0.35 a jump."""
    found = estimate_of(made(1.0, 20, 0.3), made(1.08, 10, mismatch))
    assert float(found.error_estimate) == pytest.approx(share * 0.08)
    assert ("kinks" in found.status[0].remedy) == (share == 1.0)


@pytest.mark.parametrize(
    ("kinked", "defect", "told"), [(True, 0.3, "inaccurate"), (False, 0.3, "ok"), (True, 0.04, "ok")]
)
def test_of_a_loss_with_kinks_no_mismatch_is_an_error_of_the_steps(kinked, defect, told):
    found = estimate_of(made(1.0, 20, defect), made(1.08, 10, 3 * defect), kinked=kinked)
    assert found.status == (told,)
    assert ("kinks" in found.status[0].remedy) == (told != "ok")


@pytest.mark.parametrize(("finer_steps", "told"), [(100, "ok"), (52, "diverged")])
def test_only_smaller_steps_clear_what_was_unstable(finer_steps, told):
    """Where stability decides on the steps, twice the resolution is the same solve, as unstable as the first."""
    unstable, coarse = made(1e9, 50, 0.9, "diverged"), made(1e6, 49, 1.0, "diverged")
    found = estimate_of(unstable, coarse, made(1.02e9, finer_steps, 0.1, "diverged"))
    assert found.status == (told,)
    assert float(found.error_estimate) == pytest.approx(0.02, rel=0.1)
