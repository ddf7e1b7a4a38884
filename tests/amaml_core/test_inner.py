import oracles
import pytest
import torch
from oracles import conv
from torch import nn
from torch.autograd.functional import hessian

import amaml_core as am


def images(tasks: int = 2) -> am.TaskBatch:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(tasks, 12, 1, 5, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(12).remainder(3).repeat(tasks, 1)
    return am.TaskBatch(x[:, :6], y[:, :6], x[:, 6:], y[:, 6:])


@pytest.fixture(params=["regression", "classifier", "batch norm", "group norm"])
def any_case(request) -> oracles.Case:
    if request.param in ("regression", "classifier"):
        return getattr(oracles, request.param)()
    norm = nn.BatchNorm2d(2, track_running_stats=False) if request.param == "batch norm" else nn.GroupNorm(1, 2)
    model = conv(norm).double()
    problem = am.MetaProblem(model, nn.functional.cross_entropy)
    return oracles.Case(model, nn.functional.cross_entropy, problem, problem.initial_parameters(0), images())


@pytest.fixture
def spread(any_case):
    """Other parameters for each task."""
    noise = torch.randn(
        len(any_case.tasks), any_case.problem.dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    return any_case.theta + 0.3 * noise


@pytest.mark.parametrize("prox", [0.0, 2.0])
def test_inner_objective_and_its_derivatives(any_case, spread, prox):
    inner = am.InnerProblem(any_case.problem, any_case.theta, any_case.tasks, prox)
    point, v = inner.linearize(spread), spread.flip(0)
    products = point.hvp(v)
    for b, u in enumerate(spread):

        def objective(u, b=b):
            return any_case.support(b)(u) + prox / 2 * ((u - any_case.theta) ** 2).sum()

        assert torch.allclose(inner.loss(spread)[b], objective(u), rtol=1e-12)
        assert torch.allclose(inner.gradient(spread)[b], oracles.gradient(objective, u), rtol=1e-10, atol=1e-12)
        assert torch.allclose(point.gradient[b], oracles.gradient(objective, u), rtol=1e-10, atol=1e-12)
        assert torch.allclose(products[b], hessian(objective, u) @ v[b], rtol=1e-9, atol=1e-11)


def test_query_loss_and_gradient(any_case, spread):
    loss, grads = am.InnerProblem(any_case.problem, any_case.theta, any_case.tasks, prox=9.0).query_gradient(spread)
    for b, u in enumerate(spread):
        assert torch.allclose(loss[b], any_case.query(b)(u), rtol=1e-12)
        assert torch.allclose(grads[b], oracles.gradient(any_case.query(b), u), rtol=1e-10, atol=1e-12)


def test_products_may_be_repeated_and_are_counted(regression):
    inner = am.InnerProblem(regression.problem, regression.theta, regression.tasks)
    point, v = inner.linearize(inner.start()), torch.ones(3, regression.problem.dim, dtype=torch.float64)
    assert torch.equal(point.hvp(v), point.hvp(v))
    inner.gradient(inner.start())
    assert dict(inner.stats) == {"grad_evals": 1, "hvp_evals": 2, "linearizations": 1}


def test_a_linear_loss_has_no_curvature():
    problem = am.MetaProblem(nn.Linear(2, 1, bias=False), lambda p, t: (p - t).mean())
    tasks = am.TaskBatch(*(torch.ones(2, 3, n) for n in (2, 1, 2, 1)))
    point = am.InnerProblem(problem, torch.ones(2), tasks).linearize(torch.ones(2, 2))
    assert torch.equal(point.hvp(torch.ones(2, 2)), torch.zeros(2, 2))


def test_other_loss_inside_and_outside(regression):
    problem = am.MetaProblem(regression.model, inner_loss=nn.functional.l1_loss, outer_loss=nn.functional.mse_loss)
    inner = am.InnerProblem(problem, regression.theta, regression.tasks)
    u = inner.start()
    absolute = oracles.flat_loss(
        regression.model, nn.functional.l1_loss, u[0], regression.tasks.support_x[0], regression.tasks.support_y[0]
    )
    assert torch.allclose(inner.loss(u)[0], absolute)
    assert torch.allclose(inner.query_loss(u)[0], regression.query(0)(u[0]))
