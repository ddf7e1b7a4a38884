import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from zoo import Forward

from amaml_core.plain import written

X, Y = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.ones(5, 1)


def linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1), nn.Tanh())
    model.register_buffer("seen", torch.zeros(1))
    return model


def test_values_and_gradients_are_those_of_the_module_at_u():
    model, u = linear(), torch.tensor([0.5, -1.0, 0.25])
    with written(model, ["0.weight", "0.bias"], (mse_loss,)) as plain:
        value = plain.value(mse_loss, (X, Y), u)
        gradient = plain.gradient(mse_loss, (X, Y), u)
    w = u.clone().requires_grad_()
    right = mse_loss((X @ w[:2, None] + w[2]).tanh(), Y)
    assert torch.allclose(value, right)
    assert torch.allclose(gradient, torch.autograd.grad(right, w)[0])


def test_it_is_as_before_even_for_a_graph_that_was_made_before():
    model = linear()
    model[0].bias.requires_grad_(False)
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    loss = mse_loss(model(X), Y)
    with written(model, ["0.weight"], (mse_loss,), torch.float64) as plain:
        assert plain.gradient(mse_loss, (X.double(), Y.double()), torch.ones(2).double()).dtype == torch.float64
    loss.backward()  # would complain of parameters that were written to
    assert model[0].weight.grad is not None
    assert not model[0].bias.requires_grad
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])


@pytest.mark.parametrize("in_place", [False, True])
def test_it_is_noticed_that_a_module_remembers(in_place):
    def call(m, x):
        m.s = m.s.add_(1.0) if in_place else m.s + 1.0
        return m.l(x) * m.s

    model = Forward(call, l=nn.Linear(2, 1))
    model.register_buffer("s", torch.zeros(1))
    with written(model, ["l.weight", "l.bias"], (mse_loss,)) as plain:
        assert plain.remembers(mse_loss, torch.ones(3), (X, Y))
    assert float(model.s) == 0
    with written(linear(), ["0.weight", "0.bias"], (mse_loss,)) as plain:
        assert not plain.remembers(mse_loss, torch.ones(3), (X, Y))


def test_of_masked_examples_nothing_is_asked():
    mask = torch.tensor([True, False, True, False, False])
    with written(linear(), ["0.weight", "0.bias"], (mse_loss,)) as plain:
        some = plain.value(mse_loss, (X, Y, mask), torch.ones(3))
        assert torch.allclose(some, plain.value(mse_loss, (X[mask], Y[mask]), torch.ones(3)))


def test_buffers_of_its_own_making_are_gone_and_shared_ones_are_shared():
    model = linear()
    model[1].register_buffer("too", model.seen)
    with written(model, ["0.weight", "0.bias"], (mse_loss,), torch.float64):
        assert model.seen is model[1].too
        assert model.seen.dtype == torch.float64
        model.register_buffer("new", torch.ones(1))
    assert not hasattr(model, "new")
    assert model.seen is model[1].too
    assert model.seen.dtype == torch.float32
