import contextvars
import threading
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import amaml_core as am
from amaml_core.engine.threads import side_by_side


def test_threads_do_not_meet_in_the_module(two_threads):
    """functional_call puts a task's parameters into the module itself: two threads at once would leave theirs there."""

    class Slow(nn.Linear):
        def forward(self, x):
            time.sleep(1e-3)  # the other thread's turn
            return super().forward(x)

    problem, x = am.MetaProblem(Slow(2, 1), mse_loss), torch.randn(3, 5, 2)
    before = dict(problem.model.named_parameters())
    points = [torch.full((3, 3), value) for value in (1.0, 2.0)]
    losses = partial(problem.losses, mse_loss, data=(x, torch.zeros(3, 5, 1)))
    for _ in range(10):
        found = side_by_side(losses, points)
        assert torch.allclose(found[1], 4 * found[0])
    assert all(value is before[name] for name, value in problem.model.named_parameters())


def test_side_by_side_is_at_once_in_order_and_shares_out_the_threads(two_threads):
    meeting = threading.Barrier(2, timeout=30)

    def square(value):
        meeting.wait()  # each waits for the other: one after the other they would never meet
        return value**2, torch.get_num_threads()

    assert side_by_side(square, [2, 3]) == [(4, 1), (9, 1)]
    assert torch.get_num_threads() == 2


def test_side_by_side_raises_when_all_have_ended(two_threads):
    ended = []

    def fail_first(value):
        if value == 0:
            raise am.InputError("no")
        time.sleep(0.05)
        ended.append(value)

    with pytest.raises(am.InputError, match="no"):
        side_by_side(fail_first, [0, 1])
    assert ended == [1]
    assert torch.get_num_threads() == 2


def test_context_variables_are_those_of_the_thread_that_asks(two_threads):
    scale = contextvars.ContextVar("scale", default=1.0)
    token = scale.set(3.0)
    assert side_by_side(lambda value: value * scale.get(), [1, 2]) == [3.0, 6.0]
    scale.reset(token)
