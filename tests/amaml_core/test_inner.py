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


class Normal(nn.Linear):
    """It raises where the mean is not finite."""

    def forward(self, x):
        return torch.distributions.Normal(super().forward(x), 1.0)


@pytest.mark.parametrize("chunk_size", [1, None])
def test_a_task_on_whose_way_the_model_raises_has_diverged_alone(chunk_size):
    torch.manual_seed(0)
    x, y = torch.randn(4, 5, 3, dtype=torch.float64), torch.randn(4, 5, 1, dtype=torch.float64)
    hard = x.clone()
    hard[3] *= 1e100
    problem = am.MetaProblem(Normal(3, 1).double(), lambda p, t: -p.log_prob(t).mean(), chunk_size=chunk_size)
    method, theta = am.create_method("maml", inner_steps=4, inner_lr=0.1), problem.initial_parameters()
    found = method.meta_gradient(problem, theta, am.TaskBatch(hard, y, x, y))
    assert found.status == ("ok", "ok", "ok", "diverged")
    assert "lower inner_lr" in found.status[3].remedy
    right = method.meta_gradient(problem, theta, am.TaskBatch(x, y, x, y)).task_grads
    assert torch.allclose(found.task_grads[:3], right[:3], rtol=1e-10)


def test_what_a_task_raises_at_theta_itself_is_refused():
    def loss(prediction, target):
        if bool((target > 100).any()):
            raise ValueError("no such target")
        return nn.functional.mse_loss(prediction, target)

    x, y = torch.randn(4, 5, 3), torch.randn(4, 5, 1)
    y[3] = 1000
    problem = am.MetaProblem(nn.Linear(3, 1), loss)
    method = am.create_method("maml", inner_steps=2, inner_lr=0.1)
    with pytest.warns(am.ModelWarning), pytest.raises(am.InputError, match="no such target"):
        method.meta_gradient(problem, problem.initial_parameters(), am.TaskBatch(x, y, x, y))


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
def test_what_a_backward_raises_for_later_tasks_is_one_sentence():
    """The second derivative of a product of two zeros."""

    class Product(nn.Linear):
        def forward(self, x):
            at = torch.zeros(5, 1, dtype=torch.long)
            return torch.ones(1, 1).scatter_reduce(0, at, super().forward(x), "prod").expand(5, 1)

    x, y = torch.randn(4, 5, 3), torch.randn(4, 5, 1)
    x[3, :2] = 0
    problem = am.MetaProblem(Product(3, 1, bias=False), nn.functional.mse_loss)
    method = am.create_method("maml", inner_steps=2, inner_lr=0.1)
    with pytest.raises(am.InputError, match=r"fails on these tasks \(RuntimeError.*Double backward"):
        method.meta_gradient(problem, problem.initial_parameters(), am.TaskBatch(x, y, x, y))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_task_that_diverges_while_anomalies_are_looked_for_has_diverged_alone():
    x, y = torch.randn(4, 5, 3), torch.randn(4, 5, 1)
    x[3] = 1e30
    problem = am.MetaProblem(nn.Linear(3, 1), nn.functional.mse_loss)
    method = am.create_method("maml", inner_steps=2, inner_lr=0.1)
    with torch.autograd.set_detect_anomaly(True):
        found = method.meta_gradient(problem, problem.initial_parameters(), am.TaskBatch(x, y, x, y))
    assert found.status == ("ok", "ok", "ok", "diverged")
