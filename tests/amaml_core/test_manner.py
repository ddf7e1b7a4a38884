"""What one look at a model tells, and what is done about it."""

import itertools
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from zoo import Forward, NewFunction

import amaml_core as am

METHOD = am.create_method("maml", inner_steps=2, inner_lr=0.1)


def layered(call, loss=mse_loss, dtype=torch.float64, **parts):
    torch.manual_seed(0)
    model = Forward(call, l=nn.Linear(3, 4), o=nn.Linear(4, 1), **parts).to(dtype)
    problem = am.MetaProblem(model, loss)
    x = torch.randn(3, 6, 3, dtype=dtype)
    return problem, am.TaskBatch(x, x.sum(-1, keepdim=True), x + 0.1, x.prod(-1, keepdim=True))


def run(problem, tasks, method=METHOD):
    return method.meta_gradient(problem, problem.initial_parameters(), tasks)


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda: torch.rand(()), "draws random numbers"),
        (random.random, "draws random numbers"),
        (np.random.rand, "draws random numbers"),
        (partial(torch.rand, (), generator=torch.Generator()), "another value each time"),
        (random.Random(0).random, "another value each time"),
        (np.random.default_rng(0).random, "another value each time"),
        (itertools.count().__next__, "another value each time"),
    ],
)
def test_random_numbers_of_every_kind_are_refused(draw, told):
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh() * (1 + float(draw()))))
    with pytest.raises(am.InputError, match=told):
        run(problem, tasks)


def test_parameters_that_are_no_numbers_are_not_taken_for_written_ones(monkeypatch):
    """On a card nobody reads θ before the update ends."""
    check = am.MetaProblem.check_theta
    monkeypatch.setattr(
        am.MetaProblem, "check_theta", lambda self, theta, values=True: check(self, theta, values=False)
    )
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh()))
    with pytest.raises(am.InputError, match="finite"):
        METHOD.meta_gradient(problem, problem.initial_parameters() * torch.nan, tasks)


def test_a_draw_that_changes_nothing_this_time_is_refused_too():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh() * (1 + (torch.rand(()) > 2))))
    with pytest.raises(am.InputError, match="draws random numbers"):
        run(problem, tasks)


def test_a_model_that_remembers_is_refused_and_left_as_it_was():
    def call(m, x):
        m.mean.mul_(0.9).add_(0.1 * x.mean())
        return m.o(m.l(x - m.mean).tanh())

    problem, tasks = layered(call)
    problem.model.register_buffer("mean", torch.zeros((), dtype=torch.float64))
    with pytest.raises(am.InputError, match="changes its 'mean'"):
        run(problem, tasks)
    assert float(problem.model.mean) == 0


def test_what_a_model_keeps_to_show_is_taken_out_again():
    def call(m, x):
        m.shown = m.l(x).tanh()
        return m.o(m.shown)

    problem, tasks = layered(call)
    right = run(*layered(lambda m, x: m.o(m.l(x).tanh()))).grad
    assert torch.equal(run(problem, tasks).grad, right)
    assert not hasattr(problem.model, "shown")


def test_counted_calls_do_not_leak_between_evaluations():
    def call(m, x):
        m.calls.append(1)
        m.count = getattr(m, "count", 0) + 1
        return m.o(m.l(x).tanh() * m.count)

    problem, tasks = layered(call, calls=[])
    with pytest.raises(am.InputError, match="another value each time"):
        run(problem, tasks)
    assert not hasattr(problem.model, "count")


def test_a_parameter_that_is_written_to_is_refused():
    def call(m, x):
        with torch.no_grad():
            m.l.weight.clamp_(-0.1, 0.1)
        return m.o(m.l(x))

    with pytest.raises(am.InputError, match="writes to its own parameters"):
        run(*layered(call))


def test_targets_that_a_loss_writes_to_are_kept():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh()), loss=lambda p, t: mse_loss(p, t.mul_(2)))
    kept = tasks.support_y.clone()
    right = run(*layered(lambda m, x: m.o(m.l(x).tanh()), loss=lambda p, t: mse_loss(p, t * 2))).grad
    assert torch.equal(run(problem, tasks).grad, right)
    assert torch.equal(tasks.support_y, kept)


def test_a_loop_is_told_once_and_kept_in_the_notes():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh() * float(x.mean())))
    with pytest.warns(am.ModelWarning, match="one after the other: vmap cannot") as told:
        run(problem, tasks)
    assert problem.notes == (str(told[0].message),)
    run(problem.with_engine("eager"), tasks)  # warnings are errors here


def test_what_vmap_cannot_do_with_later_tasks_alone_falls_back_then():
    """At the first batch nothing depends on values."""

    def call(m, x):
        return m.o(m.l(x).tanh() * (float(x.sum()) if x.shape[0] == 5 else 1.0))

    problem, tasks = layered(call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(problem, tasks)
    later = am.TaskBatch(*(value[:, :5] for value in tasks.tensors().values()))
    with pytest.warns(am.ModelWarning, match="one after the other"):
        found = run(problem, later).grad
    right, _ = layered(lambda m, x: m.o(m.l(x).tanh() * x.sum()))
    assert torch.allclose(found, run(right, later).grad, rtol=1e-12)


def test_a_wrong_vmap_rule_is_found_out():
    class Wrong(NewFunction):
        generate_vmap_rule = False

        @staticmethod
        def vmap(info, in_dims, x):
            return 2 * x.sin(), in_dims[0]

    problem, tasks = layered(lambda m, x: m.o(Wrong.apply(m.l(x))))
    right = run(*layered(lambda m, x: m.o(m.l(x).sin()))).grad
    with pytest.warns(am.ModelWarning, match="vmap gives other values"):
        assert torch.allclose(run(problem, tasks).grad, right, rtol=1e-12)


class Backward(NewFunction):
    """Sine, whose backward cannot be differentiated as it is written."""

    generate_vmap_rule = False

    @staticmethod
    def backward(ctx, *grads):
        (x,) = ctx.saved_tensors
        return grads[0] * torch.from_numpy(np.cos(x.detach().numpy()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
def test_a_second_derivative_that_is_lost_is_refused_where_it_is_needed(dtype):
    problem, tasks = layered(lambda m, x: m.o(Backward.apply(m.l(x))), dtype=dtype)
    with pytest.raises(am.InputError, match=r"no second derivative \(its Hessian-vector products are .*%"):
        run(problem, tasks)
    found = run(problem, tasks, am.create_method("fomaml", inner_steps=2, inner_lr=0.1)).grad
    plain, _ = layered(lambda m, x: m.o(m.l(x).sin()), dtype=dtype)
    right = run(plain, tasks, am.create_method("fomaml", inner_steps=2, inner_lr=0.1)).grad
    assert torch.allclose(found, right, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
def test_a_first_derivative_that_is_wrong_is_refused():
    class Ten(NewFunction):
        generate_vmap_rule = False

        @staticmethod
        def backward(ctx, *grads):
            return 0.9 * NewFunction.backward(ctx, *grads)

    with pytest.raises(am.InputError, match=r"\d+% off central differences"):
        run(*layered(lambda m, x: m.o(Ten.apply(m.l(x)))))


def test_a_loss_that_does_not_depend_on_the_parameters_is_told():
    with pytest.raises(am.InputError, match="does not depend on the adapted parameters"):
        run(*layered(lambda m, x: x[:, :1]))


@pytest.mark.parametrize("error", [ValueError, KeyError, AttributeError, ZeroDivisionError])
def test_what_somebodys_forward_raises_is_one_sentence(error):
    def call(m, x):
        raise error("no such thing")

    with pytest.raises(am.InputError, match=f"fails on these tasks.*{error.__name__}.*no such thing") as told:
        run(*layered(call))
    assert isinstance(told.value.__cause__, error)


def test_one_look_is_enough():
    calls = itertools.count()

    def call(m, x):
        next(calls)
        return m.o(m.l(x).tanh())

    problem, tasks = layered(call)
    run(problem, tasks)
    first = next(calls)
    run(problem, tasks)
    assert next(calls) - first - 1 == 3  # vmap: two inner gradients and the query's


def test_inside_of_inference_mode_it_works_too():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh()))
    right = run(problem, tasks).grad
    with torch.inference_mode():
        inside = tasks.map(torch.clone)
        assert torch.equal(run(problem, inside).grad, right)
        curve = am.adaptation_curve(problem, problem.initial_parameters(), inside, inner_lr=0.1, steps=[0, 2])
    assert torch.isfinite(curve.errors).all()


def test_hooks_of_saved_tensors_around_it_all_are_fine():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh()))
    with torch.autograd.graph.save_on_cpu():
        found = run(problem, tasks).grad
    assert torch.equal(found, run(*layered(lambda m, x: m.o(m.l(x).tanh()))).grad)


def test_a_module_that_is_used_twice_keeps_its_parameters():
    torch.manual_seed(0)
    part = nn.Linear(3, 3).double()
    model = nn.Sequential(part, nn.Tanh(), part, nn.Tanh(), nn.Linear(3, 1).double())
    kept = dict(model.named_parameters())
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    problem, tasks = am.MetaProblem(model, mse_loss), am.TaskBatch(x, x[..., :1], x + 1, x[..., 1:2])
    for _ in "12":
        assert run(problem, tasks).status[0] == "ok"
    assert all(value is kept[name] for name, value in model.named_parameters())
    assert am.check(problem, problem.initial_parameters(), tasks).autograd_error < 1e-12


def apart_in_the_loss():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh()))
    held = list(problem.model.parameters())
    return am.MetaProblem(problem.model, lambda p, t: mse_loss(p, t) + sum(q.square().sum() for q in held)), tasks


def apart_in_the_model():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh() + x @ m.held[0].T))
    problem.model.held = [problem.model.l.weight]
    return problem, tasks


def apart_in_a_hook():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh()))
    weight = problem.model.o.weight
    problem.model.register_forward_hook(lambda module, inputs, output: output * weight.sum())
    return problem, tasks


def hooked_gradient():
    problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh()))
    problem.model.l.weight.register_hook(lambda gradient: gradient / 2)
    return problem, tasks


@pytest.mark.parametrize("make", [apart_in_the_loss, apart_in_the_model, apart_in_a_hook, hooked_gradient])
def test_parameters_that_are_held_apart_and_hooks_on_them_are_noticed(make):
    with pytest.raises(am.InputError, match=r"off torch\.autograd of the module itself"):
        run(*make())


def reassigned_buffer(m, x):
    m.s = 0.9 * m.s + x.mean()
    return m.o(m.l(x).tanh() * m.s)


def first_batch_in_an_attribute(m, x):
    if not hasattr(m, "scale"):
        m.scale = x.std().detach()
    return m.o(m.l(x / m.scale).tanh())


def first_batch_in_a_dict(m, x):
    m.kept.setdefault("scale", x.std().detach())
    return m.o(m.l(x / m.kept["scale"]).tanh())


def cached_number_of_the_weight(m, x):
    m.kept.setdefault("norm", float(m.o.weight.detach().norm()) if m.training else 1.0)
    return m.o(m.l(x).tanh()) / m.kept["norm"]


@pytest.mark.parametrize(
    "call", [reassigned_buffer, first_batch_in_an_attribute, first_batch_in_a_dict, cached_number_of_the_weight]
)
@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
def test_what_the_first_call_leaves_behind_is_noticed_and_taken_back(call):
    problem, tasks = layered(call, kept={})
    problem.model.register_buffer("s", torch.ones((), dtype=torch.float64))
    with pytest.raises(am.InputError, match=r"remembers|changes"):
        run(problem, tasks)
    assert problem.model.kept == {}
    assert not hasattr(problem.model, "scale")


def test_logs_do_not_grow():
    problem, tasks = layered(lambda m, x: m.log.append(len(x)) or m.o(m.l(x).tanh()), log=[])
    run(problem, tasks)
    assert problem.model.log == []


def test_another_look_is_taken_where_a_model_has_changed():
    problem, tasks = layered(lambda m, x: m.o(nn.functional.dropout(m.l(x), m.rate)), rate=0.0)
    run(problem, tasks)
    problem.model.rate = 0.5
    with pytest.raises(am.InputError, match="draws random numbers"):
        run(problem, tasks)


def test_a_draw_for_one_task_of_many_is_noticed():
    problem, _ = layered(lambda m, x: m.o(m.l(x)) + (torch.rand(()) if float(x.sum()) > 1e3 else 0.0))
    x = torch.ones(4, 6, 3, dtype=torch.float64)
    x[3] = 1e3
    tasks = am.TaskBatch(x, x[..., :1], x, x[..., :1])
    with pytest.warns(am.ModelWarning), pytest.raises(am.InputError, match="draws random numbers"):
        run(problem, tasks)


@pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")
@pytest.mark.parametrize("most", [torch.max, torch.median])
def test_ties_at_the_start_are_broken_as_torch_breaks_them(most):
    def made():
        problem, tasks = layered(lambda m, x: m.o(m.l(x).tanh()) + most(m.z) * x[:, :1])
        problem.model.z = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        return am.MetaProblem(problem.model, mse_loss), tasks

    problem, tasks = made()
    fomaml = am.create_method("fomaml", inner_steps=1, inner_lr=1e-9)
    found = run(problem, tasks, fomaml).task_grads[0]
    own = mse_loss(problem.model(tasks.query_x[0]), tasks.query_y[0])
    right = torch.cat([g.reshape(-1) for g in torch.autograd.grad(own, list(problem.model.parameters()))])
    assert torch.allclose(found, right, atol=1e-6)


@pytest.mark.parametrize("most", [torch.max, torch.min, torch.median, torch.nanmedian])
def test_ties_that_come_up_later_are_broken_as_torch_breaks_them(most):
    problem, tasks = layered(lambda m, x: m.l(x), loss=lambda p, t: most((p[:, 0] - t[:, 0]).abs()))
    tasks = am.TaskBatch(*(value.sign() for value in tasks.tensors().values()))
    reptile = am.create_method("reptile", inner_steps=1, inner_lr=1.0)  # the first gradient itself
    theta = problem.initial_parameters()
    with pytest.warns(am.ModelWarning, match="elements that tie"):
        reptile.meta_gradient(problem, theta, tasks)
    found = reptile.meta_gradient(problem, torch.zeros_like(theta), tasks).task_grads
    plain = nn.Linear(3, 4).double()
    for b in range(3):
        with torch.no_grad():
            [p.zero_() for p in plain.parameters()]
        own = most((plain(tasks.support_x[b])[:, 0] - tasks.support_y[b][:, 0]).abs())
        right = torch.cat([g.reshape(-1) for g in torch.autograd.grad(own, list(plain.parameters()))])
        assert torch.allclose(found[b][:16], right, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_loss_may_have_another_dtype_than_the_model(dtype):
    problem, tasks = layered(
        lambda m, x: m.o(m.l(x).tanh()), loss=lambda p, t: mse_loss(p.float(), t.float()), dtype=dtype
    )
    assert run(problem, tasks).status[0] == "ok"


def test_a_padding_that_comes_up_in_a_later_batch_is_spared_in_every_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 2, padding_idx=0), nn.Flatten(1), nn.Linear(10, 1)).double()
    problem, y = am.MetaProblem(model, mse_loss), torch.ones(3, 4, 1, dtype=torch.float64)
    words = torch.randint(1, 6, (3, 4, 5))
    with pytest.warns(am.ModelWarning, match="spare the padding"):
        run(problem, am.TaskBatch(words, y, words, y))
    later = run(problem, am.TaskBatch(words - 1, y, words - 1, y))
    assert not later.task_grads[:, :2].any()
