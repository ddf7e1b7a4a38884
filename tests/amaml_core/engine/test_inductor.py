"""Compiled and eager are the same numbers to rounding; what is chosen is written down; what fails says so."""

import os
import shutil
import subprocess
import sys

import oracles
import pytest
import torch
from plain import Plain, slope
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import amaml_core as am
from amaml_core.engine import inductor, rule, traced

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="the compiled engine needs a C++ compiler"
)

METHODS = {
    "maml": ("maml", {}),
    "remat-maml": ("remat-maml", {"segment": "sqrt"}),
    "reptile": ("reptile", {}),
    "imaml": ("imaml", {"lam": 3.0}),
    "amaml-euler": ("amaml", {"forward": "euler", "backward": "euler"}),
    "amaml-checkpoint": ("amaml", {"forward": "euler", "backward": "euler", "checkpoint": "sqrt"}),
    "amaml-rk43": ("amaml", {"forward": "rk43", "backward": "rk4", "num_states": "accepted", "prox": 0.5}),
    "amaml-rk43-discrete": ("amaml", {"forward": "rk43", "backward": "discrete", "num_states": "accepted"}),
    "amaml-dopri5": ("amaml", {"num_states": 2}),
}


@pytest.fixture(scope="module", autouse=True)
def _short_calls():
    """Few evaluations in a compiled call, so that compilation takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule, "BUDGET", 2)
        yield


@pytest.fixture(scope="module")
def compiled():
    """The regression case, whose problem compiles each step once for all tests of this file."""
    case = oracles.regression()
    return case, case.problem.with_engine("compiled")


@needs_compiler
@pytest.mark.parametrize("name", METHODS)
def test_compiled_equals_eager(compiled, name):
    case, problem = compiled
    method, options = METHODS[name]
    made = am.create_method(method, inner_steps=6, inner_lr=0.05, **options)
    eager = made.meta_gradient(case.problem, case.theta, case.tasks)
    found = made.meta_gradient(problem, case.theta, case.tasks)
    assert torch.allclose(found.task_grads, eager.task_grads, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.adapted, eager.adapted, rtol=1e-10, atol=1e-12)
    assert found.status == eager.status
    for key, value in eager.stats.items():  # the last of several calls hands on a product that nobody takes
        assert value <= found.stats[key] <= value + (key == "hvp_evals"), key


GROUPED = {"forward": "rk43", "backward": "discrete", "num_states": "accepted", "rtol": 1e-2}


@needs_compiler
def test_groups_of_tasks_on_threads_of_their_own_are_chunks_that_run_at_once(compiled, two_threads):
    """Two groups of as many tasks as the other tests have: what is compiled for those serves these."""
    assert_chunks(compiled[1], oracles.regression(tasks=6), 3)


def test_groups_of_different_sizes_are_chunks_too(two_threads, monkeypatch):
    """What is compiled is stood in for by the function itself: how tasks are grouped does not depend on it."""
    monkeypatch.setattr(inductor, "compile_function", lambda function, examples: lambda *tensors: function(*tensors))
    case = oracles.regression()  # three tasks: groups of two and one
    assert_chunks(case.problem.with_engine("compiled"), case, 2)


def assert_chunks(problem, case, size):
    chunked = case.problem.with_engine("eager")
    chunked.chunk_size = size
    made = am.create_method("amaml", inner_steps=6, inner_lr=0.05, **GROUPED)
    found, expected = (made.meta_gradient(one, case.theta, case.tasks) for one in (problem, chunked))
    assert torch.allclose(found.task_grads, expected.task_grads, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.adapted, expected.adapted, rtol=1e-10, atol=1e-12)
    assert found.stats["forward_steps"] < expected.stats["forward_steps"]  # the longest of both, not their sum
    assert torch.get_num_threads() == 2


@needs_compiler
def test_what_is_compiled_once_serves_other_values(compiled):
    case, problem = compiled
    method = am.create_method("reptile", inner_steps=6, inner_lr=0.02)
    tasks = am.TaskBatch(*(value.flip(0) for value in vars(case.tasks).values() if value is not None))
    method.meta_gradient(problem, case.theta, case.tasks)
    before = inductor.seconds
    found = method.meta_gradient(problem, 0.9 * case.theta, tasks)
    assert inductor.seconds == before
    assert torch.allclose(found.grad, method.meta_gradient(case.problem, 0.9 * case.theta, tasks).grad, rtol=1e-10)


@needs_compiler
def test_a_frozen_part_may_change_after_compilation_and_a_loss_may_close_over_tensors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    weight = torch.tensor([1.0, 2.0, 0.5])
    loss = lambda prediction, target: cross_entropy(prediction, target, weight=weight)  # noqa: E731
    x, y = torch.randn(2, 6, 2), torch.randint(3, (2, 6))
    tasks = am.TaskBatch(x, y, x, y)
    eager = am.MetaProblem(model, loss, adapt=r"2\..*", engine="eager")
    problem, method = eager.with_engine("compiled"), am.create_method("fomaml", inner_steps=2, inner_lr=0.1)
    theta = eager.initial_parameters()
    for _ in range(2):
        found, expected = (method.meta_gradient(p, theta, tasks).grad for p in (problem, eager))
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            model[0].weight.mul_(3.0)


@needs_compiler
def test_a_model_without_a_second_derivative_compiles():
    problem = am.MetaProblem(nn.Linear(2, 1), lambda p, y: (p * y).mean(), engine="compiled")
    x, y = torch.randn(2, 5, 2), torch.randn(2, 5, 1)
    point = am.InnerProblem(problem, torch.ones(3), am.TaskBatch(x, y, x, y)).linearize(torch.ones(2, 3))
    assert torch.equal(point.hvp(torch.ones(2, 3)), torch.zeros(2, 3))
    assert torch.allclose(point.gradient[:, :2], (x * y).mean(1))


@pytest.mark.parametrize(
    ("failure", "told"),
    [("InvalidCxxCompiler: no g++", "install g\\+\\+ or clang"), ("CppCompileError: no Python.h\nlong", "no Python.h")],
)
def test_a_compilation_that_fails_is_told_in_a_sentence(monkeypatch, failure, told):
    def fail(*arguments, **options):
        raise RuntimeError(failure)  # inductor wraps what happened in an error of its own

    monkeypatch.setattr("torch._inductor.compile", fail)
    problem = am.MetaProblem(nn.Linear(1, 1), mse_loss, engine="compiled")
    x = torch.ones(1, 2, 1)
    with pytest.raises(am.InputError, match=f'{told}.*; use engine="eager"'):
        am.InnerProblem(problem, torch.ones(2), am.TaskBatch(x, x, x, x)).gradient(torch.ones(1, 2))


@needs_compiler
def test_a_missing_compiler_is_recognised(tmp_path):
    code = (
        "import torch, amaml_core as am\nx = torch.ones(1, 2, 1)\n"
        "p = am.MetaProblem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, engine='compiled')\n"
        "am.InnerProblem(p, torch.ones(2), am.TaskBatch(x, x, x, x)).gradient(torch.ones(1, 2))\n"
    )
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "CXX": "/nonexistent/g++"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert 'InputError: engine="compiled" fails here (there is no C++ compiler: install g++ or clang)' in done.stderr


@needs_compiler
def test_one_tensor_in_two_places_is_not_taken_for_one_input(compiled):
    case, _ = compiled
    problem = case.problem.with_engine("compiled")
    tasks, u = case.tasks, case.theta.expand(3, -1).clone()
    x, y, other = tasks.support_x, tasks.support_y, tasks.query_x
    am.InnerProblem(problem, case.theta, am.TaskBatch(x, y, x, y)).gradient(u)
    found = am.InnerProblem(problem, case.theta, am.TaskBatch(x, y, other, tasks.query_y)).gradient(u)
    assert torch.allclose(found, am.InnerProblem(case.problem, case.theta, tasks).gradient(u), rtol=1e-10)


@needs_compiler
def test_strides_and_closed_over_tensors_and_losses_may_change(compiled):
    case, _ = compiled
    weight = torch.ones((), dtype=torch.float64)
    problem = am.MetaProblem(case.model, lambda p, y: weight * mse_loss(p, y), engine="compiled")
    u = case.theta.expand(3, -1).clone()
    strided = torch.stack([case.theta, -case.theta], dim=1)[:, 0]
    expected = am.InnerProblem(case.problem, case.theta, case.tasks, prox=2.0).gradient(u + 1)
    for theta in (case.theta, strided):
        assert torch.allclose(
            am.InnerProblem(problem, theta, case.tasks, prox=2.0).gradient(u + 1), expected, rtol=1e-10
        )
    weight.mul_(3.0)
    plain = am.InnerProblem(case.problem, case.theta, case.tasks).gradient(u)
    assert torch.allclose(am.InnerProblem(problem, case.theta, case.tasks).gradient(u), 3 * plain, rtol=1e-10)
    problem.inner_loss = lambda p, y: 5 * mse_loss(p, y)
    assert torch.allclose(am.InnerProblem(problem, case.theta, case.tasks).gradient(u), 5 * plain, rtol=1e-10)


@needs_compiler
def test_convolutions_compile_with_their_products():
    problem, theta, tasks = oracles.conv_case()
    model = nn.Sequential(problem.model[0], nn.BatchNorm2d(3, track_running_stats=False), nn.GELU(), *problem.model[2:])
    problem = am.MetaProblem(model.double(), cross_entropy)
    theta, tasks = problem.initial_parameters(), tasks[:2]
    points = [
        am.InnerProblem(p, theta, tasks).linearize(theta.expand(2, -1))
        for p in (problem, problem.with_engine("compiled"))
    ]
    v = torch.linspace(-1, 1, 2 * problem.dim, dtype=torch.float64).reshape(2, -1)
    assert torch.allclose(points[0].gradient, points[1].gradient, rtol=1e-9, atol=1e-12)
    for direction in (v, v.flip(1)):
        assert torch.allclose(points[0].hvp(direction), points[1].hvp(direction), rtol=1e-8, atol=1e-11)


class Graph(nn.Module):
    """Message passing: each node has the sum over its neighbours, written into a tensor that all tasks share."""

    edges = torch.tensor([0, 1, 0, 1, 0])

    def __init__(self, kind):
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        whole, there = torch.arange(8.0).to(x).view(2, 4), self.first(x)
        if self.kind == "add":
            whole = whole.index_add(0, self.edges, there, alpha=2)
        else:
            whole = whole.index_put((self.edges,), there, accumulate=True)
        return self.last(whole.tanh()[self.edges])


def on_a_graph(kind, engine):
    torch.manual_seed(0)
    model, (x, y) = Graph(kind).double(), (torch.randn(2, 5, n, dtype=torch.float64) for n in (3, 1))
    problem = am.MetaProblem(model, mse_loss, engine=engine)
    theta, tasks = problem.initial_parameters(), am.TaskBatch(x, y, x, y)
    found = am.create_method("maml", inner_steps=1, inner_lr=0.1).meta_gradient(problem, theta, tasks)
    before = Plain(model, mse_loss, problem.names, tasks)
    value = lambda u: float(before.value(before.trained(u, 0, 1, 0.1), 0, "query").detach())  # noqa: E731
    return found, slope(value, theta, torch.ones_like(theta))(1e-4)


@needs_compiler
@pytest.mark.parametrize("kind", ["add", "put"])
def test_what_is_written_into_one_tensor_for_all_tasks_is_each_tasks_own(kind):
    """Inductor writes all of them into one memory, expanded by vmap."""
    found, expected = on_a_graph(kind, "compiled")
    assert float(found.task_grads[0].sum()) == pytest.approx(expected, rel=1e-7)
    assert found.status == ("ok", "ok")


@needs_compiler
def test_what_the_compiler_builds_wrongly_is_not_used(monkeypatch):
    monkeypatch.setattr(traced, "_writes", lambda node: False)
    with pytest.warns(am.ModelWarning, match="off torch's own operators: such steps are not compiled"):
        found, expected = on_a_graph("add", "compiled")
    assert float(found.task_grads[0].sum()) == pytest.approx(expected, rel=1e-7)
