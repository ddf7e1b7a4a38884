"""Modules and losses that hold or return things of their own kind."""

import copy
import pickle
import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import amaml_core as am

pytestmark = pytest.mark.filterwarnings("ignore::amaml_core.ModelWarning")


def tasks():
    torch.manual_seed(0)
    x, y = torch.randn(4, 5, 3), torch.randn(4, 5, 1)
    return am.TaskBatch(x, y, x, y)


def gradient(model, loss=mse_loss, batch=None, method="maml"):
    problem = am.MetaProblem(model, loss)
    method = am.create_method(method, inner_steps=2, inner_lr=0.1)
    return method.meta_gradient(problem, problem.initial_parameters(), batch or tasks()).grad


class Config(dict):
    __getattr__ = dict.__getitem__


class Locked(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.lock = threading.Lock()
        self.register_buffer("scale", scale)

    def forward(self, p, y):
        return mse_loss(p, y)


def test_a_model_may_hold_what_answers_no_question():
    import torch._dynamo  # only where it is there torch.compile is looked for

    model = nn.Linear(3, 1)
    plain = gradient(model)
    model.config = Config(k=1)
    assert torch.equal(gradient(model), plain)


def test_a_loss_that_cannot_be_copied_is_not_where_it_need_not_be():
    model = nn.Linear(3, 1)
    assert torch.equal(gradient(model, Locked(None)), gradient(model))
    with pytest.raises(am.InputError, match=r"cannot be copied.*keep locks"):
        gradient(model, Locked(torch.ones(())))


def test_extra_state_is_part_of_what_comes_back():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"v": 1}

        def set_extra_state(self, state):
            assert state == {"v": 1}

    model = Extra(3, 1)
    problem = am.MetaProblem(model, mse_loss)
    model.load_state_dict(problem.unflatten(problem.initial_parameters()))


def test_a_sparse_buffer_gives_what_the_dense_one_does():
    class Graph(nn.Linear):
        def __init__(self, adjacency):
            super().__init__(3, 1)
            self.register_buffer("adjacency", adjacency)

        def forward(self, x):
            return super().forward(self.adjacency @ x)

    ring = torch.eye(5) + torch.eye(5).roll(1, 0)
    dense, sparse = Graph(ring), Graph(ring.to_sparse())
    sparse.load_state_dict({**dense.state_dict(), "adjacency": ring.to_sparse()})
    assert torch.allclose(gradient(sparse), gradient(dense), rtol=1e-4)
    problem = am.MetaProblem(sparse, mse_loss)
    am.check(problem, problem.initial_parameters(), tasks())


def test_sparse_gradients_are_refused_with_their_remedy():
    words = torch.randint(9, (4, 5, 2), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Embedding(9, 3, sparse=True), nn.Flatten(1), nn.Linear(6, 1))
    batch = am.TaskBatch(words, tasks().support_y, words, tasks().query_y)
    with pytest.raises(am.InputError, match="sparse=False"):
        gradient(model, batch=batch)
    model[0].sparse = False
    assert torch.isfinite(gradient(model, batch=batch)).all()


@dataclass
class Output:
    mean: torch.Tensor


class Opaque(nn.Linear):
    def forward(self, x):
        return Output(super().forward(x))


def test_predictions_that_are_found_nowhere_are_refused_where_they_are_needed():
    model, batch = Opaque(3, 1), tasks()
    loss = lambda p, y: mse_loss(p.mean, y)  # noqa: E731
    assert torch.isfinite(gradient(model, loss)).all()
    problem = am.MetaProblem(model, loss)
    with pytest.raises(am.InputError, match="returns a Output, in which no predictions are found"):
        problem.predict(problem.initial_parameters().expand(4, -1), batch.query_x)
    mask = torch.ones(4, 5, dtype=torch.bool)
    with pytest.raises(am.InputError, match="returns a Output, in which no predictions are found"):
        gradient(model, loss, am.TaskBatch(*batch.support, *batch.query, support_mask=mask, query_mask=mask))


@pytest.mark.parametrize("again", [lambda problem: pickle.loads(pickle.dumps(problem)), copy.deepcopy])
def test_a_problem_that_was_used_is_pickled_and_copied(again):
    problem = am.MetaProblem(nn.Linear(3, 1), mse_loss)
    method, theta = am.create_method("maml", inner_steps=2, inner_lr=0.1), problem.initial_parameters()
    right = method.meta_gradient(problem, theta, tasks()).grad
    other = again(problem)
    assert torch.equal(method.meta_gradient(other, theta, tasks()).grad, right)
    assert copy.copy(problem).compiled is problem.compiled


def test_a_full_backward_hook_is_told_as_a_hook():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model[2].register_full_backward_hook(lambda m, gi, go: tuple(g if g is None else 0.5 * g for g in gi))
    with pytest.warns(am.ModelWarning, match="is detached or has hooks"):
        gradient(model, method="fomaml")
