"""Examples that do not count have no part in anything, or the mask is refused."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import amaml_core as am

METHOD = am.create_method("maml", inner_steps=2, inner_lr=0.1)


def run(problem, tasks, method=METHOD):
    return method.meta_gradient(problem, problem.initial_parameters(), tasks)


def masked(model, loss, n=6, d=3, o=1, fill=7.0):
    torch.manual_seed(0)
    x, y = torch.randn(4, n, d, dtype=torch.float64), torch.randn(4, n, o, dtype=torch.float64)
    mask = torch.arange(n) < torch.tensor([[n], [n - 2], [n - 1], [2]])
    x[~mask], y[~mask] = fill, fill
    return am.MetaProblem(model.double(), loss), am.TaskBatch(x, y, x, y, support_mask=mask, query_mask=mask)


def alone(problem, tasks, method=METHOD):
    """Each task by itself, without what is masked."""
    theta, found = problem.initial_parameters(), []
    for one in tasks.chunks(1):
        x, y = one.support_x[one.support_mask][None], one.support_y[one.support_mask][None]
        found.append(method.meta_gradient(problem, theta, am.TaskBatch(x, y, x, y)).task_grads)
    return torch.cat(found)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 1)

    def forward(self, x):
        return self.l((x @ x.T).softmax(-1) @ x)


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
@pytest.mark.parametrize("fill", [7.0, 0.0])
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)),
        Attends(),
        nn.Sequential(nn.Flatten(0), nn.Linear(18, 6), nn.Unflatten(0, (6, 1))),
    ],
)
def test_what_is_masked_and_has_a_part_all_the_same_is_refused(model, fill):
    with pytest.raises(am.InputError, match="What is masked has a part"):
        run(*masked(model, mse_loss, fill=fill))


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(reduction="sum"),
        lambda p, t: mse_loss(p, t).sqrt(),
        lambda p, t: nn.functional.cross_entropy(
            torch.cat([p, -p], -1), (t[:, 0] > 0).long(), weight=torch.tensor([1.0, 3.0]).to(p)
        ),
        lambda p, t: nn.functional.cross_entropy(torch.cat([p, -p], -1), (t[:, 0] > 0).long() - 1, ignore_index=-1),
    ],
)
def test_a_loss_that_is_no_mean_over_examples_is_refused_with_a_mask(loss):
    problem, tasks = masked(nn.Linear(3, 1), loss)
    for mask in (tasks.support_mask, torch.ones_like(tasks.support_mask)):
        with pytest.raises(am.InputError, match="it is no mean over examples"):
            run(problem, am.TaskBatch(*(tasks.support[:2] * 2), support_mask=mask, query_mask=mask))


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 1)

    def forward(self, x):
        return self.l(x / x.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize(
    ("model", "loss"), [(Unit(), mse_loss), (nn.Linear(3, 1), lambda p, t: ((p - t) / t).square().mean())]
)
def test_what_is_filled_up_may_lie_where_there_is_no_value(model, loss, engine):
    problem, tasks = masked(model, loss, fill=0.0)
    problem = problem.with_engine(engine)
    method = am.create_method("maml", inner_steps=2, inner_lr=1e-3)
    found = run(problem, tasks, method)
    assert set(found.status) == {"ok"}
    assert torch.allclose(found.task_grads, alone(problem.with_engine("eager"), tasks, method), rtol=1e-9)
    assert not tasks.support_x[1, -1].any()
    theta = problem.initial_parameters()
    am.check(problem, theta, tasks)
    assert torch.isfinite(am.adaptation_curve(problem, theta, tasks, inner_lr=1e-3, steps=[0, 1]).errors).all()
