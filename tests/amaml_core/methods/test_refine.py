"""Gradients to a tolerance of their own, against finer solves and closed forms."""

import math

import oracles
import pytest
import torch
from torch import nn

import amaml_core as am
from amaml_core.methods.accuracy import RECHECKED


def method(grad_rtol, horizon=2.0, **options):
    return am.create_method("amaml", inner_steps=50, inner_lr=horizon / 50, grad_rtol=grad_rtol, **options)


def cost(out):
    return out.stats["grad_evals"] + 2 * out.stats["hvp_evals"]


@pytest.mark.parametrize(("horizon", "grad_rtol"), [(0.5, 1e-1), (0.5, 1e-3), (4.0, 1e-2), (4.0, 1e-4)])
def test_the_tolerance_is_met_and_what_it_took_is_kept(case, flow_gradient, grad_rtol, horizon):
    exact = flow_gradient(case, horizon).mean(0)
    asked = method(grad_rtol, horizon)
    problem = am.MetaProblem(case.model, case.loss)
    first, second = (asked.meta_gradient(problem, case.theta, case.tasks) for _ in "12")
    for found in (first, second):
        assert float((found.grad - exact).norm() / exact.norm()) <= grad_rtol
        assert set(found.status) == {"ok"}
    assert cost(second) < cost(first) / 1.4
    assert bool((first.error_estimate < 0.1).all())
    assert second.error_estimate is None


def test_prox_too(case, flow_gradient):
    exact = flow_gradient(case, 1.0, 1.5).mean(0)
    found = method(1e-3, 1.0, prox=1.5).meta_gradient(case.problem, case.theta, case.tasks)
    assert float((found.grad - exact).norm() / exact.norm()) <= 1e-3


def test_it_is_looked_at_again(regression):
    problem = am.MetaProblem(regression.model, regression.loss)
    asked = method(1e-2)
    costs = [cost(asked.meta_gradient(problem, regression.theta, regression.tasks)) for _ in range(RECHECKED + 2)]
    assert costs[-1] > max(costs[1:-1])


def test_a_curvature_that_grows_is_noticed_before_the_next_look(regression):
    """The same problem from another start, where the steps of the first one are far too long."""
    problem = am.MetaProblem(regression.model, regression.loss)
    asked = method(1e-2, 4.0)
    asked.meta_gradient(problem, regression.theta, regression.tasks)
    theta = 4 * regression.theta
    found = asked.meta_gradient(problem, theta, regression.tasks)
    exact = method(1e-4, 4.0).meta_gradient(problem, theta, regression.tasks).grad
    assert float((found.grad - exact).norm() / exact.norm()) <= 1e-2


def test_adaptation_ends_where_the_flow_does(regression):
    asked = method(1e-3)
    out = asked.meta_gradient(regression.problem, regression.theta, regression.tasks)
    adapted = asked.adapt(regression.problem, regression.theta, regression.tasks)
    assert oracles.relative(adapted.adapted, out.adapted) < 1e-4


def test_a_kink_ends_in_a_word_not_in_a_search_without_end():
    """u' = −4 above zero and −1 below: the almost-everywhere derivative of u(1) is 1."""

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x):
            return self.w.expand(len(x), -1)

    losses = {"inner_loss": lambda p, y: (3 * p[0].relu() + p[0]).sum(), "outer_loss": lambda p, y: p[0].sum()}
    problem, zero = am.MetaProblem(Point(), **losses), torch.zeros(1, 1, 1, dtype=torch.float64)
    theta, tasks = problem.initial_parameters(), am.TaskBatch(zero, zero, zero, zero)
    for _ in range(3):
        found = method(1e-3, 1.0).meta_gradient(problem, theta, tasks)
        assert found.status[0] == "inaccurate"
        assert "kink" in found.status[0].remedy
        assert cost(found) < 20_000


def test_what_cannot_be_met_is_told(regression):
    single = am.MetaProblem(nn.Linear(2, 1), regression.loss)
    tasks = regression.tasks.to(dtype=torch.float32)
    theta = single.initial_parameters()
    for _ in range(2):  # also while the setting is kept
        found = method(1e-9).meta_gradient(single, theta, tasks)
        assert set(found.status) == {"inaccurate"}
        assert all("1e-09" in status.remedy for status in found.status)


def test_a_flow_that_explodes_is_not_searched_for_long():
    calls = []

    def loss(prediction, target):  # u' = u² leaves the finite numbers
        calls.append(1)
        return -(prediction**3).sum() / 3

    problem = am.MetaProblem(nn.Linear(1, 1, bias=False).double(), loss)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    theta = torch.ones(1, dtype=torch.float64)
    found = method(1e-3, 5.0).meta_gradient(problem, theta, am.TaskBatch(one, one, one, one))
    assert found.status[0] == "diverged"
    assert len(calls) < 20_000


@pytest.mark.parametrize(
    "options",
    [{"forward": "rk4"}, {"backward": "rk4"}, {"num_states": 7}, {"rtol": 1e-3}, {"estimate_error": True}],
    ids=str,
)
def test_what_it_finds_itself_is_refused_beside_it(options):
    with pytest.raises(am.InputError, match=next(iter(options))):
        method(1e-2, **options)


@pytest.mark.parametrize("grad_rtol", [0.0, -1.0, math.nan, "small"])
def test_bad_tolerances_are_refused(grad_rtol):
    with pytest.raises(am.InputError, match="grad_rtol"):
        method(grad_rtol)


def test_options_make_it_again():
    asked = method(1e-2)
    assert am.create_method("amaml", **asked.options()).options() == asked.options()
