"""Kernels of a thread block a task give what the operators give, one by one.

There may be no card and no Triton here: a stand-in runs the same text on torch's own operators, block by block. It is
as strict as Triton about what it is asked for: sides are powers of two, products at least 16 wide, reads and writes
inside of their tensors; and what a kernel does not write is NaN.
"""

import math
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from stand_in import StandIn
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils._python_dispatch import _disable_current_modes

import amaml_core as am
from amaml_core.engine import block_operators, blocks, graphs
from amaml_core.inner import Half, InnerProblem, _detached_gradient, _gradient
from amaml_core.ode.adjoint import BACKWARD, Retreat
from amaml_core.ode.flow import _OfFlow
from amaml_core.ode.scheme import RK4, Advance

grid = [0, 0]


class Pointer:
    def __init__(self, tensor, offset=0):
        self.tensor, self.offset = tensor, offset

    def __add__(self, more):
        return Pointer(self.tensor, self.offset + more)


def place(pointer, mask):
    offset = torch.as_tensor(pointer.offset).broadcast_to(mask.shape)
    assert all(side & (side - 1) == 0 for side in mask.shape)
    used = offset[mask]
    assert not used.numel() or (int(used.min()) >= 0 and int(used.max()) < pointer.tensor.numel())
    return torch.where(mask, offset, 0)


def load(pointer, mask, other):
    return torch.where(mask, pointer.tensor[place(pointer, mask)], other)


def store(pointer, value, mask):
    assert value.shape == mask.shape
    pointer.tensor[place(pointer, mask)[mask]] = value[mask]


def where(condition, one, other):
    return torch.where(torch.as_tensor(condition), one, other)


def dot(a, b, input_precision):
    assert input_precision in ("ieee", "tf32x3")
    assert min(*a.shape, *b.shape) >= 16
    return a @ b


def reduced(function):
    def call(value, axis=None, keep_dims=False):
        return function(value) if axis is None else function(value, axis, keep_dims)

    return call


def arange(start, end):
    assert end & (end - 1) == 0
    return torch.arange(start, end)


LANGUAGE = {
    "arange": arange,
    "program_id": lambda axis: grid[axis],
    "load": load,
    "store": store,
    "where": where,
    "trans": lambda value: value.T,
    "dot": dot,
    "sum": reduced(torch.sum),
    "max": reduced(torch.amax),
    "broadcast_to": lambda value, shape: value.broadcast_to(shape),
    "full": lambda shape, value, dtype: torch.full(shape, value) if not torch.is_tensor(value) else value.expand(shape),
    "float32": torch.float32,
    "minimum": lambda a, b: min(a, b) if isinstance(a, int) else torch.minimum(a, torch.as_tensor(b)),
    "maximum": lambda a, b: torch.maximum(a, torch.as_tensor(b)),
    "sigmoid": torch.sigmoid,
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "log": torch.log,
    "abs": torch.abs,
    "erf": torch.erf,
}


class Compiled:
    """What ``triton.jit`` makes of a kernel."""

    launches = 0

    def __init__(self, function):
        self.function = function

    def __getitem__(self, size):
        def launch(*arguments, num_warps):
            *tensors, tasks = arguments
            assert num_warps in (2, 4, 8)
            assert size[0] == tasks
            tensors[-1].fill_(math.nan)
            Compiled.launches += 1
            with _disable_current_modes():  # what a capture refuses is not what a kernel does
                self.run(size, tensors, tasks)

        return launch

    def run(self, size, tensors, tasks):
        for grid[0] in range(size[0]):
            for grid[1] in range(size[1]):
                self.function(*(Pointer(tensor.view(-1)) for tensor in tensors), tasks)


@pytest.fixture
def triton(monkeypatch):
    """No card, no Triton: stand-ins for both."""
    import torch._inductor.codecache  # it looks for Triton itself

    names = ("triton", "triton.language", "triton.language.extra")
    package, language, extra = (ModuleType(name) for name in names)
    package.jit = lambda **options: Compiled
    package.language, language.extra = language, extra
    vars(language).update(LANGUAGE)
    extra.libdevice = SimpleNamespace(tanh=torch.tanh, log1p=torch.log1p, expm1=torch.expm1)
    for name, module in zip(names, (package, language, extra), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(graphs, "record", StandIn())
    monkeypatch.setattr(graphs, "possible", lambda device: True)
    monkeypatch.setattr(Compiled, "launches", 0)
    monkeypatch.setattr(blocks, "_multiprocessors", lambda tensor: 132)


def make(examples, activation=nn.Tanh, width=3, inputs=2, tasks=2):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, width), activation(), nn.Linear(width, 1))
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.7 * torch.randn(value.shape, generator=generator))
    x = torch.randn(tasks, examples, inputs, generator=generator)
    y = torch.sin(x.sum(-1, keepdim=True)) + 0.1 * torch.randn(tasks, 1, 1, generator=generator)
    problem = am.MetaProblem(model, mse_loss, engine="compiled")
    return problem, problem.initial_parameters(), am.TaskBatch(x, y, x + 0.3, y)


def close(found, expected, within=2e-5):
    return float((found - expected).norm()) <= within * float(expected.norm())


METHODS = {
    "maml": ("maml", {}),
    "remat-maml": ("remat-maml", {"segment": 2}),
    "fomaml": ("fomaml", {}),
    "imaml": ("imaml", {"lam": 2.0, "cg_steps": 3}),
    "euler": ("amaml", {"forward": "euler", "backward": "euler"}),
    "rk4": ("amaml", {"forward": "rk4", "backward": "rk4"}),
    "rk4-prox": ("amaml", {"forward": "rk4", "backward": "rk4", "prox": 0.5}),
    "discrete": ("amaml", {"forward": "heun", "backward": "discrete"}),
    "rk43": ("amaml", {"forward": "rk43", "backward": "rk4", "num_states": "accepted", "rtol": 1e-3}),
}


@pytest.mark.parametrize(("examples", "room"), [(6, 132), (33, 132), (33, 0)])  # a block a task, three, two
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_what_the_eager_engine_finds(triton, monkeypatch, name, examples, room):
    monkeypatch.setattr(blocks, "_multiprocessors", lambda tensor: room)
    method, options = METHODS[name]
    problem, theta, tasks = make(examples)
    made = am.create_method(method, inner_steps=2, inner_lr=0.05, **options)
    found = made.meta_gradient(problem, theta, tasks)
    expected = made.meta_gradient(problem.with_engine("eager"), theta, tasks)
    assert Compiled.launches
    assert close(found.task_grads, expected.task_grads)
    assert close(found.adapted, expected.adapted)
    assert close(found.query_loss, expected.query_loss)
    assert found.status == expected.status


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.GELU, nn.Softplus, nn.SiLU, nn.ELU, nn.Identity])
@pytest.mark.parametrize("examples", [6, 40])
def test_gradients_and_products_of_networks_with_other_activations(triton, activation, examples):
    problem, theta, tasks = make(examples, activation)
    inner, eager = InnerProblem(problem, theta, tasks), InnerProblem(problem.with_engine("eager"), theta, tasks)
    u = inner.start() + 0.1
    v = torch.linspace(-1, 1, u.numel()).reshape(u.shape)
    for step, arguments in ((_detached_gradient, (u,)), (Half(_gradient, product=True), (u, v))):
        found = inner._block(step, arguments)
        if found is None:  # an operator that has no place there: whoever asks takes another way
            assert activation in (nn.ELU, nn.Softplus, nn.SiLU, nn.GELU)
            continue
        assert close(found[0](*arguments, *inner._inputs)[0], step(eager, *arguments)[0])


def programs(monkeypatch, step, *tensors, examples=40):
    made, program = [], blocks.program
    monkeypatch.setattr(blocks, "program", lambda *args, **kinds: made.append(program(*args, **kinds)) or made[-1])
    problem, theta, tasks = make(examples, width=20, inputs=16)
    inner = InnerProblem(problem, theta, tasks)
    u = inner.start().contiguous()
    assert inner._block(step, tuple(tensor(u) for tensor in tensors)) is not None
    return made[-1]


def per_task(u):
    return u.new_full((len(u), 1), 0.1)


def stacked(u):
    return u.new_full((1, len(u), 1), 0.1)


def itself(u):
    return u + 0.1


def test_a_step_of_rk4_is_a_kernel_for_each_gradient_and_one_for_the_results(triton, monkeypatch):
    made = programs(monkeypatch, _OfFlow(Advance(RK4, 1)), itself, stacked, per_task)
    assert [parts for _, _, parts, _ in made.kernels] == [3, 3, 3, 3]
    assert "tl.dot" not in made.last


def test_a_heavy_kernel_leaves_what_comes_before_it_to_another(triton, monkeypatch):
    step = _OfFlow(Retreat(BACKWARD["rk4"], 1, False, True))
    arguments = (stacked, stacked, itself, lambda u: u[:, 0], itself, itself, itself, itself)
    light = programs(monkeypatch, step, *arguments)
    monkeypatch.setattr(blocks, "_multiprocessors", lambda tensor: 0)
    monkeypatch.setattr(blocks, "MANY", replace(blocks.MANY, light=1))
    heavy = programs(monkeypatch, step, *arguments)
    sums = [[text for text, _, parts, _ in made.kernels if parts > 1] for made in (light, heavy)]
    assert len(sums[0]) == len(sums[1])
    assert len(heavy.kernels) > len(light.kernels)
    assert all('"ieee"' in text for text in sums[0])
    assert any('"tf32x3"' in text for text in sums[1])


@pytest.mark.parametrize("examples", [6, 33])
def test_a_term_of_the_loss_that_is_no_sum_over_examples_counts_once(triton, examples):
    problem, theta, tasks = make(examples)
    model = problem.model

    def loss(prediction, target):
        return mse_loss(prediction, target) + 0.1 * sum(value.square().sum() for value in model.parameters())

    problem = am.MetaProblem(model, loss, engine="compiled")
    made = am.create_method("amaml", inner_steps=2, inner_lr=0.05, forward="rk4", backward="rk4")
    found = made.meta_gradient(problem, theta, tasks)
    assert Compiled.launches
    assert close(found.task_grads, made.meta_gradient(problem.with_engine("eager"), theta, tasks).task_grads)


def test_examples_that_are_as_many_as_something_else_are_not_shared(triton, monkeypatch):
    problem, theta, tasks = make(40, width=40)
    inner = InnerProblem(problem, theta, tasks)
    made, program = [], blocks.program
    monkeypatch.setattr(blocks, "program", lambda *args, **kinds: made.append(program(*args, **kinds)) or made[-1])
    assert inner._block(_detached_gradient, (inner.start().contiguous(),)) is not None
    assert [one.kernels for one in made] == [[]]


def test_a_network_that_does_not_fit_goes_another_way(triton):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1))
    problem = am.MetaProblem(model, mse_loss, engine="compiled")
    x, y = torch.ones(2, 5, 1, 4, 4), torch.ones(2, 5, 1)
    assert not InnerProblem(problem, problem.initial_parameters(), am.TaskBatch(x, y, x, y))._on_blocks
    problem, theta, tasks = make(6)
    assert not InnerProblem(problem, theta.double(), tasks.map(torch.Tensor.double))._on_blocks


def test_a_kernel_with_other_results_is_noticed(triton, monkeypatch):
    monkeypatch.setitem(block_operators.UNARY, torch.ops.aten.tanh.default, ("tl.sigmoid({0})", False))
    problem, theta, tasks = make(6)
    assert not InnerProblem(problem, theta, tasks)._on_blocks
