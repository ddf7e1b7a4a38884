"""What a model writes to only for some values or shapes, which the first look did not see."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from zoo import Forward

import amaml_core as am

pytestmark = pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
F64 = {"dtype": torch.float64}


def made(call, loss=mse_loss, n=6, tasks=4, **parts):
    torch.manual_seed(0)
    model = Forward(call, l=nn.Linear(3, 1), **parts).double()
    x = torch.randn(tasks, n, 3, **F64).clamp(-2, 2)
    return model, am.TaskBatch(x, x.sum(-1, keepdim=True), x + 0.1, x.prod(-1, keepdim=True))


def loop(model, tasks, steps=2, lr=0.1, second=True):
    """MAML's gradient of each task, by torch alone: parameters as plain attributes of a fresh copy."""
    found = []
    for b in range(len(tasks)):
        alone = copy.deepcopy(model)
        parts = [alone.l.weight, alone.l.bias]
        del alone.l._parameters["weight"], alone.l._parameters["bias"]
        theta = parts
        for x, y in [(tasks.support_x[b], tasks.support_y[b])] * steps:
            alone.l.__dict__["weight"], alone.l.__dict__["bias"] = parts
            grads = torch.autograd.grad(mse_loss(alone(x.clone()), y), parts, create_graph=second)
            parts = [p - lr * g for p, g in zip(parts, grads, strict=True)]
        alone.l.__dict__["weight"], alone.l.__dict__["bias"] = parts
        value = mse_loss(alone(tasks.query_x[b].clone()), tasks.query_y[b])
        found.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, theta)]))
    return torch.stack(found)


def run(problem, tasks, name="maml"):
    method = am.create_method(name, inner_steps=2, inner_lr=0.1)
    return method.meta_gradient(problem, problem.initial_parameters(), tasks)


def growing(like):
    def call(m, x):
        if len(x) > len(m.table):
            m.table = like(x)
        return m.l(x + m.table[: len(x)])

    return call


TABLES = [lambda x: x.new_ones(len(x), 1).cumsum(0), lambda x: torch.arange(1.0, len(x) + 1, **F64)[:, None]]


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("like", TABLES)
def test_a_table_that_grows_at_a_later_shape_is_taken_out_again(engine, like):
    model, tasks = made(growing(like), table=torch.arange(1.0, 7.0, **F64)[:, None])
    own = model.table
    problem = am.MetaProblem(model, mse_loss, engine=engine)
    run(problem, tasks)
    _, longer = made(None, n=8)
    found = run(problem, longer)
    assert model.table is own
    assert torch.allclose(found.task_grads, loop(model, longer), rtol=1e-9)
    assert problem.predict(found.adapted, longer.query_x).shape == (4, 8, 1)
    curve = am.adaptation_curve(problem, problem.initial_parameters(), made(None, n=9)[1], inner_lr=0.1, steps=[2])
    assert torch.isfinite(curve.errors).all()
    am.check(problem, problem.initial_parameters(), made(None, n=10)[1])
    assert model.table is own


def test_a_prediction_alone_leaves_nothing_behind():
    model, tasks = made(growing(TABLES[0]), table=torch.arange(1.0, 7.0, **F64)[:, None])
    own, problem = model.table, am.MetaProblem(model, mse_loss)
    problem.predict(problem.initial_parameters().expand(4, -1), tasks.query_x)
    problem.predict(problem.initial_parameters().expand(4, -1), made(None, n=8)[1].query_x)
    assert model.table is own


def test_a_loss_that_is_a_module_leaves_nothing_behind_either():
    class Weighted(nn.Module):
        weights = None

        def forward(self, p, y):
            if self.weights is None or len(self.weights) < len(p):
                self.weights = p.new_ones(len(p), 1).cumsum(0)
            return (self.weights[: len(p)] * (p - y) ** 2).mean()

    model, tasks = made(lambda m, x: m.l(x))
    loss = Weighted()
    problem = am.MetaProblem(model, loss)
    for batch in (tasks, made(None, n=8)[1]):
        assert set(run(problem, batch).status) == {"ok"}
    assert loss.weights is None


def test_the_first_batch_of_a_later_shape_is_not_remembered_in_silence():
    def call(m, x):
        if len(x) > 6 and "scale" not in m.kept:
            m.kept["scale"] = x.std().detach()
        return m.l(x / m.kept.get("scale", 1.0))

    model, tasks = made(call, kept={})
    problem = am.MetaProblem(model, mse_loss)
    run(problem, tasks)
    with pytest.raises(am.InputError, match="remembers what it was called with first"):
        run(problem, made(None, n=8)[1])
    assert model.kept == {}


def data_write(m, x):
    return m.l.weight.data.clamp_(-0.8, 0.8)


def guarded_write(m, x):
    with torch.no_grad():
        if bool((m.l.weight.abs() > 0.8).any()):
            m.l.weight.clamp_(-0.8, 0.8)


@pytest.mark.parametrize("write", [data_write, guarded_write])
@pytest.mark.parametrize("name", ["fomaml", "maml"])
def test_weights_that_outgrow_a_box_later_are_not_cut_in_the_callers_theta(write, name):
    problem = am.MetaProblem(made(lambda m, x: (write(m, x), m.l(x))[1])[0], mse_loss)
    method, tasks = am.create_method(name, inner_steps=2, inner_lr=1e-3), made(None)[1]
    theta = problem.initial_parameters()
    method.meta_gradient(problem, theta, tasks)
    large = 5 * theta
    kept = large.clone()
    with pytest.raises(am.InputError, match="writes to its own parameters"):
        method.meta_gradient(problem, large, tasks)
    assert torch.equal(large, kept)


@pytest.mark.parametrize("name", ["fomaml", "maml"])
def test_compiled_code_that_would_cut_weights_is_refused_whatever_they_are(name):
    problem = am.MetaProblem(made(lambda m, x: (data_write(m, x), m.l(x))[1])[0], mse_loss, engine="compiled")
    with pytest.raises(am.InputError, match=r"writes to its parameters, buffers or data by aten\.clamp_"):
        run(problem, made(None)[1], name)


def cut(m, x):
    if bool((x > 3).any()):
        x[x > 3] = 3.0
    return m.l(x)


@pytest.mark.parametrize("chunk_size", [1, None])
@pytest.mark.parametrize("name", ["fomaml", "maml"])
def test_data_that_are_written_to_in_a_later_task_alone_are_kept(chunk_size, name):
    model, tasks = made(cut)
    tasks.support_x[3, 0, 0] = 9.0
    kept = tasks.support_x.clone()
    found = run(am.MetaProblem(model, mse_loss, chunk_size=chunk_size), tasks, name)
    assert torch.equal(tasks.support_x, kept)
    if name == "maml":
        assert torch.allclose(found.task_grads, loop(model, tasks), rtol=1e-9)


def test_an_activation_in_place_on_data_that_happen_to_be_positive_at_first():
    model, tasks = made(lambda m, x: m.l(x.relu_()))
    first = tasks.map(lambda value: value.abs())
    problem = am.MetaProblem(model, mse_loss)
    assert torch.allclose(run(problem, first).task_grads, loop(model, first), rtol=1e-9)
    kept = tasks.support_x.clone()
    assert torch.allclose(run(problem, tasks).task_grads, loop(model, tasks), rtol=1e-9)
    assert torch.equal(tasks.support_x, kept)


def peak(use):
    def call(m, x):
        if float(x.abs().max()) > 5:
            m.peak.fill_(float(x.abs().max()))
            m.many += 1
        return m.l(x) / (m.peak if use else 1)

    return call


def buffered(use):
    model, tasks = made(peak(use))
    model.register_buffer("peak", torch.tensor(5.0, **F64))
    model.register_buffer("many", torch.tensor(0))
    tasks.support_x[3, 0, 0] = 9.0
    return model, tasks


def test_buffers_that_a_later_task_alone_counts_in_are_kept():
    model, tasks = buffered(use=False)
    found = run(am.MetaProblem(model, mse_loss), tasks).task_grads
    assert (float(model.peak), int(model.many)) == (5.0, 0)
    assert torch.allclose(found, loop(model, tasks), rtol=1e-9)


def test_buffers_that_a_later_task_alone_fills_and_that_are_used_are_refused():
    model, tasks = buffered(use=True)
    with pytest.raises(am.InputError, match=r"'peak'|remembers"):
        run(am.MetaProblem(model, mse_loss), tasks)
    assert (float(model.peak), int(model.many)) == (5.0, 0)


def test_a_buffer_that_is_written_to_only_while_tasks_adapt_is_refused():
    def call(m, x):
        if float(m.l.weight.detach().norm()) > m.limit:
            m.peak.fill_(2.0)
        return m.l(x)

    model, tasks = buffered(use=False)
    model = Forward(call, l=model.l, limit=1.1 * float(model.l.weight.detach().norm()))
    model.register_buffer("peak", torch.tensor(5.0, **F64))
    with pytest.raises(am.InputError, match="changes its 'peak' while tasks adapt"):
        run(am.MetaProblem(model, mse_loss), tasks)
    assert float(model.peak) == 5.0
