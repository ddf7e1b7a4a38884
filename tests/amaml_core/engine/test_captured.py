"""What was compiled must notice what model and losses read besides their arguments."""

import array
import contextvars
import functools
import os
import sys
import textwrap
import types

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import amaml_core as am
from amaml_core.engine import inductor
from amaml_core.engine.captured import STATES, captured

SCALE = 1.0


def by_global(p, t):
    return SCALE * mse_loss(p, t)


class WithAttribute:
    scale = 1.0
    tensor = torch.ones(1)

    def __call__(self, p, t):
        return self._scaled(p, t)

    def _scaled(self, p, t):
        return (self.scale * self.tensor * (p - t).square()).mean()


class Slotted:
    __slots__ = ("scale",)

    def __init__(self):
        self.scale = 1.0

    def __call__(self, p, t):
        return self.scale * mse_loss(p, t)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.factor, self.options = nn.Linear(2, 1), 1.0, {"shift": [0.0]}

    def forward(self, x):
        return self.inner(x) * self.factor + self.options["shift"][0]


def closing_over():
    scale = 1.0

    def loss(p, t):
        return scale * mse_loss(p, t)

    def change(value):
        nonlocal scale
        scale = value

    return loss, change


def attribute(loss, name):
    return loss, lambda value: setattr(loss, name, torch.full((1,), value) if name == "tensor" else value)


def default():
    loss = lambda p, t, scale=1.0: scale * mse_loss(p, t)  # noqa: E731
    return loss, lambda value: setattr(loss, "__defaults__", (value,))


def list_in_a_partial():
    scales = [1.0]
    return functools.partial(lambda scales, p, t: scales[0] * mse_loss(p, t), scales), lambda v: scales.__setitem__(
        0, v
    )


def of_the_module():
    return by_global, lambda value: globals().__setitem__("SCALE", value)


def of_a_class():
    made = type("Loss", (WithAttribute,), {})
    return made(), lambda value: setattr(made, "scale", value)


def of_a_package(imported):
    """SCALE of a module in a package that is imported at the top, or inside of the loss."""
    package, inner = types.ModuleType("package_of_somebody"), types.ModuleType("package_of_somebody.config")
    package.config, inner.SCALE = inner, 1.0
    sys.modules |= {module.__name__: module for module in (package, inner)}
    space = {"mse_loss": mse_loss, "__name__": "user", "__package__": "package_of_somebody"}
    exec(textwrap.dedent(imported), space)
    return space["loss"], lambda value: setattr(inner, "SCALE", value)


ABOVE = """
    import package_of_somebody.config
    def loss(p, t):
        return package_of_somebody.config.SCALE * mse_loss(p, t)
"""
INSIDE = """
    def loss(p, t):
        from package_of_somebody import config
        return config.SCALE * mse_loss(p, t)
"""
RELATIVE = """
    def loss(p, t):
        from .config import SCALE
        return SCALE * mse_loss(p, t)
"""


def of_the_environment():
    return (
        lambda p, t: float(os.environ.get("AMAML_SCALE", "1")) * mse_loss(p, t)
    ), lambda value: os.environ.__setitem__("AMAML_SCALE", str(value))


def of_the_context():
    scale = contextvars.ContextVar("scale", default=1.0)
    return (lambda p, t: scale.get() * mse_loss(p, t)), scale.set


def of_an_array():
    scale = array.array("d", [1.0])
    return (lambda p, t: scale[0] * mse_loss(p, t)), lambda value: scale.__setitem__(0, value)


class Schedule:
    def __getitem__(self, name):
        return SCALE


def of_a_dunder():
    schedule = Schedule()
    return (lambda p, t: schedule["now"] * mse_loss(p, t)), lambda value: globals().__setitem__("SCALE", value)


def of_a_string():
    return (lambda p, t: globals()["SCALE"] * mse_loss(p, t)), lambda value: globals().__setitem__("SCALE", value)


KINDS = {
    "global by a string": of_a_string,
    "module of a package": lambda: of_a_package(ABOVE),
    "import inside": lambda: of_a_package(INSIDE),
    "relative import inside": lambda: of_a_package(RELATIVE),
    "environment": of_the_environment,
    "context variable": of_the_context,
    "array": of_an_array,
    "global in a dunder": of_a_dunder,
    "closure": closing_over,
    "attribute": lambda: attribute(WithAttribute(), "scale"),
    "tensor that is replaced": lambda: attribute(WithAttribute(), "tensor"),
    "slot": lambda: attribute(Slotted(), "scale"),
    "class attribute": of_a_class,
    "default": default,
    "list in a partial": list_in_a_partial,
    "global": of_the_module,
}


@pytest.fixture
def traced(monkeypatch):
    """The compiled engine, but for the compiler."""
    monkeypatch.setattr(inductor, "_build", lambda graph, examples: graph)


@pytest.fixture
def tasks():
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 2), torch.randn(2, 5, 1)
    return am.TaskBatch(x, y, x, y)


METHOD = am.create_method("maml", inner_steps=3, inner_lr=0.1)


def agree(problem, tasks):
    theta = problem.initial_parameters()
    mine, right = (METHOD.meta_gradient(one, theta, tasks).grad for one in (problem, problem.with_engine("eager")))
    return torch.allclose(mine, right, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_value_is_noticed(kind, traced, tasks):
    loss, change = KINDS[kind]()
    problem = am.MetaProblem(nn.Linear(2, 1), loss, engine="compiled")
    assert agree(problem, tasks)
    built = len(problem.compiled)
    assert agree(problem, tasks)
    assert len(problem.compiled) == built  # the same again is not compiled again
    try:
        change(3.0)
        assert agree(problem, tasks)
    finally:
        change(1.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "factor", 3.0),
        lambda model: model.options["shift"].__setitem__(0, 2.0),
        lambda model: model.register_forward_hook(lambda module, inputs, output: output * 2),
        lambda model: setattr(model, "forward", lambda x: model.inner(x) ** 2),
    ],
)
def test_a_changed_model_is_noticed(change, traced, tasks):
    model = Scaled()
    problem = am.MetaProblem(model, mse_loss, engine="compiled", adapt="inner.*")
    assert agree(problem, tasks)
    change(model)
    assert agree(problem, tasks)


def test_a_tensor_that_is_changed_in_place_is_read_anew(traced, tasks):
    loss = WithAttribute()
    loss.tensor = torch.ones(1)
    problem = am.MetaProblem(nn.Linear(2, 1), loss, engine="compiled")
    assert agree(problem, tasks)
    built = len(problem.compiled)
    loss.tensor.fill_(3.0)
    assert agree(problem, tasks)
    assert len(problem.compiled) == built


def test_what_changes_time_and_again_is_refused_by_name(traced, tasks):
    loss = WithAttribute()
    problem = am.MetaProblem(nn.Linear(2, 1), loss, engine="compiled")
    theta = problem.initial_parameters()
    for step in range(STATES):
        loss.scale = 1.0 + step
        METHOD.meta_gradient(problem, theta, tasks)
    loss.scale = 0.5
    with pytest.raises(am.InputError, match=r"What is compiled holds inner_loss.scale, which changes time and again"):
        METHOD.meta_gradient(problem, theta, tasks)


def test_what_is_not_read_is_not_looked_at():
    found = captured(loss=mse_loss, model=nn.Sequential(nn.Linear(2, 1), nn.Tanh()))
    assert "loss" in found
    assert not any("weight" in path for path in found)
    assert len(found) < 30
