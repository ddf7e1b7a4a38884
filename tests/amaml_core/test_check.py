"""Promises kept and broken, by models made for it; that the zoo passes is tested with the zoo."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from zoo import Forward, NewFunction

import amaml_core as am

pytestmark = pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")


def made(call, loss=mse_loss, dtype=torch.float32, adapt=None):
    torch.manual_seed(0)
    model = Forward(call, l=nn.Linear(3, 4), o=nn.Linear(4, 1)).to(dtype)
    x = torch.randn(3, 6, 3, dtype=dtype)
    problem = am.MetaProblem(model, loss, adapt=adapt)
    return (
        problem,
        problem.initial_parameters(),
        am.TaskBatch(x, x.sum(-1, keepdim=True), x + 1, x.prod(-1, keepdim=True)),
    )


def test_a_float32_model_is_checked_in_float64_and_left_as_it_was():
    problem, theta, tasks = made(lambda m, x: m.o(m.l(x).relu()))
    problem.model.register_buffer("shift", torch.ones(2))
    before = {
        name: (value, value.clone(), value.dtype) for name, value in problem.model.state_dict(keep_vars=True).items()
    }
    found = am.check(problem, theta, tasks)
    assert found.dtype == torch.float64
    assert max(found.autograd_error, found.slope_error, found.product_error) < 1e-6
    for name, value in problem.model.state_dict(keep_vars=True).items():
        same, kept, dtype = before[name]
        assert value is same
        assert value.dtype == dtype
        assert torch.equal(value, kept)


def test_tensors_of_their_own_dtype_are_checked_in_the_models_and_it_says_so():
    weights = torch.tensor([0.5])
    found = am.check(*made(lambda m, x: m.o(m.l(x).tanh()), loss=lambda p, t: mse_loss(p @ weights.view(1, 1), t)))
    assert found.dtype == torch.float32
    assert "checked in torch.float32" in found.notes[-1]


def test_a_loss_in_another_dtype_than_a_float64_model_is_told():
    loss = lambda p, t: mse_loss(p.float(), t.float())  # noqa: E731
    with pytest.raises(am.InputError, match=r"another dtype than torch\.float64 \(the loss is torch\.float32\)"):
        am.check(*made(lambda m, x: m.o(m.l(x).tanh()), loss=loss, dtype=torch.float64))


class Biased(NewFunction):
    generate_vmap_rule = False

    @staticmethod
    def backward(ctx, *grads):
        return 0.95 * NewFunction.backward(ctx, *grads)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m, x: m.o(Biased.apply(m.l(x))), "off central differences"),
        (lambda m, x: m.o(m.l(x)) * torch.rand(()), "draws random numbers"),
    ],
)
def test_wrong_derivatives_and_broken_promises_are_told(call, told):
    with pytest.raises(am.InputError, match=told):
        am.check(*made(call))


def test_the_loss_reads_the_parameters_of_the_task():
    problem, theta, tasks = made(lambda m, x: m.o(m.l(x).tanh()))
    model = problem.model
    decayed = am.MetaProblem(model, lambda p, t: mse_loss(p, t) + sum(q.square().sum() for q in model.parameters()))
    assert am.check(decayed, theta, tasks).autograd_error < 1e-10


def test_only_what_is_adapted_is_checked_and_gradients_are_kept():
    problem, theta, tasks = made(lambda m, x: m.o(m.l(x).tanh()), adapt="o.*")
    problem.model.l.weight.grad = torch.ones(4, 3)
    am.check(problem, theta, tasks)
    assert torch.equal(problem.model.l.weight.grad, torch.ones(4, 3))
    assert all(value.requires_grad for value in problem.model.parameters())


def test_what_is_detached_is_told_and_followed_as_torch_does():
    problem, theta, tasks = made(lambda m, x: m.o(m.l(x).tanh() * m.l(x).detach()), dtype=torch.float64)
    found = am.check(problem, theta, tasks)
    assert found.autograd_error < 1e-10
    assert found.product_error is None  # a second derivative would hold fast what training moves
    assert "something in the model or the loss is detached" in found.notes[0]
    with pytest.raises(am.InputError, match="no second derivative"):
        am.create_method("maml", inner_steps=2, inner_lr=0.1).meta_gradient(problem, theta, tasks)
    out = am.create_method("fomaml", inner_steps=2, inner_lr=0.1).meta_gradient(problem, theta, tasks)
    assert out.status[0] == "ok"


class Tripled(torch.autograd.Function):
    """The sum of squares; its derivative is half as long again as it should be."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w.square().sum()

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0]


class Decayed(nn.Module):
    """A loss that holds the model, and a tensor of its own."""

    def __init__(self, model, penalty):
        super().__init__()
        self.model, self.penalty = model, penalty
        self.register_buffer("weight", torch.ones(1))

    def forward(self, prediction, target):
        return mse_loss(self.weight * prediction, target) + 0.1 * self.penalty(self.model.l.weight)


def test_a_loss_that_holds_the_model_holds_the_one_that_is_checked():
    problem, theta, tasks = made(lambda m, x: m.o(m.l(x).tanh()))
    for penalty in (lambda w: w.square().sum(), Tripled.apply):
        own = am.MetaProblem(problem.model, Decayed(problem.model, penalty))
        if penalty == Tripled.apply:
            with pytest.raises(am.InputError, match="off central differences"):
                am.check(own, theta, tasks)
        else:
            assert am.check(own, theta, tasks).dtype == torch.float64
            method = am.create_method("maml", inner_steps=1, inner_lr=0.1)
            assert method.meta_gradient(own, theta, tasks).status[0] == "ok"
    assert {value.dtype for value in [*problem.model.parameters(), *own.inner_loss.buffers()]} == {torch.float32}


def test_threads_may_check_and_differentiate_one_model_at_once():
    problem, theta, tasks = made(lambda m, x: m.o(m.l(x).tanh()), adapt="o.*")
    method, done, found = am.create_method("maml", inner_steps=2, inner_lr=0.1), threading.Event(), []
    right = method.meta_gradient(problem, theta, tasks).grad

    def work():
        while not done.is_set():
            found.append(torch.allclose(method.meta_gradient(problem, theta, tasks).grad, right))
            found.append(torch.equal(problem.initial_parameters(), theta))

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(work)
        for _ in range(5):
            am.check(problem, theta, tasks)
        done.set()
        other.result()
    assert found
    assert all(found)


def test_what_is_no_problem_and_no_batch_is_told():
    problem, theta, tasks = made(lambda m, x: m.o(m.l(x).tanh()))
    with pytest.raises(am.InputError, match="not a MetaProblem and a tuple"):
        am.check(problem, theta, (tasks.support_x, tasks.support_y))
