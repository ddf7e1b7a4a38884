"""What is captured and replayed gives the bits of the eager engine, reads nothing on its way, and lets go."""

import gc
import warnings

import oracles
import pytest
import torch
from stand_in import StandIn
from torch import nn
from torch.nn.functional import mse_loss

import amaml_core as am
from amaml_core.engine import graphs

WHOLE = {
    "maml": ("maml", {}),
    "remat-maml": ("remat-maml", {"segment": "sqrt"}),
    "fomaml": ("fomaml", {}),
    "reptile": ("reptile", {}),
    "imaml": ("imaml", {"lam": 3.0, "cg_steps": 20}),
    "imaml-official": ("imaml", {"variant": "official"}),
    "amaml-euler": ("amaml", {"forward": "euler", "backward": "euler"}),
    "amaml-prox": ("amaml", {"forward": "rk4", "backward": "rk4", "prox": 0.5}),
    # one graph, and not another for its estimate
    "amaml-discrete": ("amaml", {"forward": "heun", "backward": "discrete", "estimate_error": False}),
    "amaml-checkpoint": ("amaml", {"forward": "euler", "backward": "euler", "checkpoint": "sqrt"}),
}
STEPS = {
    "imaml-hf": ("imaml", {"variant": "paper-hf", "lam": 3.0}),
    "amaml-rk43": ("amaml", {"forward": "rk43", "backward": "rk4", "num_states": "accepted"}),
    "amaml-rkc2": ("amaml", {"forward": "rkc2", "backward": "discrete", "num_states": "accepted", "rtol": 1e-3}),
    "amaml-dopri5": ("amaml", {}),
    "amaml-backsolve": ("amaml", {"backward": "backsolve"}),
    "amaml-stopping": ("amaml", {"forward": "rk4", "backward": "rk4", "stopping": am.QueryLoss(1)}),
}
METHODS = WHOLE | STEPS
UNASKED = {"amaml-discrete": {"estimate_error": None}}


@pytest.fixture
def stand_in(monkeypatch):
    made = StandIn()
    monkeypatch.setattr(graphs, "record", made)
    monkeypatch.setattr(graphs, "possible", lambda device: True)
    return made


def create(name, **changes):
    method, options = METHODS[name]
    return am.create_method(method, **{"inner_steps": 6, "inner_lr": 0.05, **options, **changes})


def other(case):
    """Other parameters and other tasks of the same shapes."""
    return case.theta + 0.1, case.tasks.map(lambda value: value * 0.9 if value.is_floating_point() else value)


def same(found, expected):
    for name in ("adapted", "query_loss", "task_grads", "grad", "horizon"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.status == expected.status
    assert [one.remedy for one in found.status] == [one.remedy for one in expected.status]


@pytest.mark.parametrize("name", METHODS)
def test_graphed_equals_eager_at_other_parameters_and_tasks_too(stand_in, name):
    case = oracles.regression()
    problem, method = case.problem.with_engine("graphed"), create(name)
    same(
        method.meta_gradient(problem, case.theta, case.tasks),
        method.meta_gradient(case.problem, case.theta, case.tasks),
    )
    captured = stand_in.captures
    assert captured
    theta, tasks = other(case)
    found, expected = method.meta_gradient(problem, theta, tasks), method.meta_gradient(case.problem, theta, tasks)
    same(found, expected)
    if name in WHOLE:
        assert stand_in.captures == captured == 1
        assert stand_in.replays == 2
        if not name.startswith("imaml"):  # whose captured conjugate gradients do not end early
            assert found.stats == expected.stats


@pytest.mark.parametrize("name", WHOLE)
def test_an_update_that_ends_well_waits_for_the_device_once(stand_in, monkeypatch, name):
    case = oracles.regression()
    # once it was looked into unasked, too
    problem, method = case.problem.with_engine("graphed"), create(name, inner_steps=40, **UNASKED.get(name, {}))
    tolist, reads = torch.Tensor.tolist, []
    method.meta_gradient(problem, case.theta, case.tasks)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor) or tolist(tensor))
    method.meta_gradient(problem, case.theta, case.tasks)
    assert len(reads) == 1


def test_what_was_handed_out_is_not_overwritten(stand_in):
    case, method = oracles.regression(), create("maml")
    problem = case.problem.with_engine("graphed")
    first = method.meta_gradient(problem, case.theta, case.tasks)
    kept = first.task_grads.clone(), first.adapted.clone(), first.query_loss.clone()
    method.meta_gradient(problem, *other(case))
    assert all(map(torch.equal, kept, (first.task_grads, first.adapted, first.query_loss)))


def test_frozen_parameters_and_buffers_may_change(stand_in):
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    problem = am.MetaProblem(model, mse_loss, adapt=r"2\..*")
    graphed, method = problem.with_engine("graphed"), create("maml")
    x = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tasks, theta = am.TaskBatch(x, x[..., :1], x + 1, x[..., 1:]), problem.initial_parameters()
    before = method.meta_gradient(graphed, theta, tasks)
    with torch.no_grad():
        model[0].weight += 0.5
    after = method.meta_gradient(graphed, theta, tasks)
    assert not torch.equal(before.grad, after.grad)
    same(after, method.meta_gradient(problem, theta, tasks))
    assert stand_in.captures == 1


def test_another_tensor_in_the_loss_is_noticed(stand_in):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = [torch.tensor(1.0, dtype=torch.float64)]

        def forward(self, prediction, target):
            return self.weight[0] * mse_loss(prediction, target)

    loss, x = Weighted(), torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6, 1)
    problem = am.MetaProblem(nn.Linear(1, 1).double(), loss)
    graphed, method, tasks = problem.with_engine("graphed"), create("maml"), am.TaskBatch(x, 2 * x, x, x)
    theta = problem.initial_parameters()
    method.meta_gradient(graphed, theta, tasks)
    loss.weight[0] = torch.tensor(3.0, dtype=torch.float64)
    same(method.meta_gradient(graphed, theta, tasks), method.meta_gradient(problem, theta, tasks))
    assert stand_in.captures == 2
    loss.weight[0].fill_(5.0)  # on the host: a kernel was given its value
    same(method.meta_gradient(graphed, theta, tasks), method.meta_gradient(problem, theta, tasks))
    assert stand_in.captures == 3


def test_what_cannot_be_captured_is_eager_and_told_once(stand_in):
    class Peeks(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if float(x[0, 0]) > -1e9 else 1.0)

    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6, 1)
    tasks, model = am.TaskBatch(x, 2 * x, x, x), Peeks(1, 1).double()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        problem = am.MetaProblem(model, mse_loss)
        graphed, theta, method = problem.with_engine("graphed"), problem.initial_parameters(), create("maml")
        found = [method.meta_gradient(graphed, theta, tasks) for _ in range(3)]
        same(found[2], method.meta_gradient(problem, theta, tasks))
        steps = create("amaml-rk43")
        same(steps.meta_gradient(graphed, theta, tasks), steps.meta_gradient(problem, theta, tasks))
    mine = [str(one.message) for one in told if "CUDA graph" in str(one.message)]
    assert len(mine) == 1
    assert "not permitted when stream is capturing" in mine[0]
    assert stand_in.replays == 1  # of what judges an update by numbers that it has


class Writes(nn.Linear):
    """Writes to its inputs, but not where it is looked at, on few examples."""

    def __init__(self, how):
        super().__init__(1, 1)
        self.how = how

    def forward(self, x):
        if x.shape[0] > 5:
            self.how(x)
        return super().forward(x)


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
@pytest.mark.parametrize("how", [lambda x: x.mul_(0.9), lambda x: x.data.mul_(0.9)])
@pytest.mark.parametrize("name", ["fomaml", "maml", "amaml-rk43"])
def test_what_writes_to_its_data_is_not_replayed_on_what_it_left(stand_in, name, how):
    problem = am.MetaProblem(Writes(how).double(), mse_loss)
    method, theta = create(name), problem.initial_parameters()
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(2, 8, 1)
    few, many = (am.TaskBatch(v.clone(), 2 * v, v.clone(), v) for v in (x[:, :4], x))
    found = []
    for made in (problem, am.MetaProblem(problem.model, mse_loss, engine="graphed")):
        method.meta_gradient(made, theta, few)
        found.append([method.meta_gradient(made, theta, many) for _ in range(2)])
    for expected, one in zip(*found, strict=True):
        same(one, expected)


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError])
def test_what_a_model_raises_in_a_capture_is_told_as_in_the_eager_engine(stand_in, error):
    class Raises(nn.Linear):
        def forward(self, x):
            if x.shape[0] > 5:
                raise error("too many")
            return super().forward(x)

    problem = am.MetaProblem(Raises(1, 1).double(), mse_loss, engine="graphed")
    x = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(2, 8, 1)
    create("fomaml").meta_gradient(problem, problem.initial_parameters(), am.TaskBatch(*[x[:, :4]] * 4))
    with pytest.raises(am.InputError, match="too many"):
        create("fomaml").meta_gradient(problem, problem.initial_parameters(), am.TaskBatch(*[x] * 4))


def test_the_graph_that_was_not_used_for_longest_goes_first(stand_in, monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 2)
    case, method = oracles.regression(), create("fomaml")
    problem = case.problem.with_engine("graphed")
    for count in (1, 2, 1, 3, 1):
        x = torch.ones(count, 4, 2, dtype=torch.float64)
        method.meta_gradient(problem, case.theta, am.TaskBatch(x, x[..., :1], x, x[..., :1]))
    assert stand_in.captures == 3


def test_graphs_are_few_and_go_with_their_problem(stand_in, monkeypatch):
    monkeypatch.setattr(graphs, "MOST", 3)
    gc.collect()
    before, case = len(graphs.alive), oracles.regression()
    problem, method = case.problem.with_engine("graphed"), create("fomaml")
    for count in range(1, 7):
        x = torch.ones(count, 4, 2, dtype=torch.float64)
        method.meta_gradient(problem, case.theta, am.TaskBatch(x, x[..., :1], x, x[..., :1]))
    gc.collect()
    assert len(graphs.alive) - before == 3
    assert stand_in.captures == 6
    del problem
    gc.collect()
    assert len(graphs.alive) == before


def test_a_task_that_diverges_is_told_as_in_the_eager_engine(stand_in):
    case, method = oracles.regression(), create("maml", inner_lr=1e6, inner_steps=60)
    found = method.meta_gradient(case.problem.with_engine("graphed"), case.theta, case.tasks)
    same_status = method.meta_gradient(case.problem, case.theta, case.tasks).status
    assert found.status == same_status
    assert "diverged" in found.status


def test_without_cuda_graphed_is_refused():
    case = oracles.regression()
    with pytest.raises(am.InputError, match='engine="graphed" needs CUDA'):
        create("maml").meta_gradient(case.problem.with_engine("graphed"), case.theta, case.tasks)


def test_a_graph_that_is_let_go_leaves_nothing_behind(stand_in, monkeypatch):
    """Without any help of the garbage collector, which may not come before the memory is gone."""
    monkeypatch.setattr(graphs, "MOST", 2)
    case, method = oracles.regression(), create("amaml-rk43")
    problem = case.problem.with_engine("graphed")
    gc.collect()
    before = len(graphs.alive)
    gc.disable()
    try:
        for count in range(1, 4):
            x = torch.ones(count, 4, 2, dtype=torch.float64)
            method.meta_gradient(problem, case.theta, am.TaskBatch(x, x[..., :1], x, x[..., :1]))
        assert len(graphs.alive) - before <= 3  # those that are kept, and the last one while a frame lives
    finally:
        gc.enable()
