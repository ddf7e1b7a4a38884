from itertools import accumulate

import pytest
import torch
from stand_ins import measured

from bench.probes.allocator import allocations
from bench.probes.memory import LiveBytes

N = 1000  # float64: 8,000 bytes


def ones(grad=False, device="cpu"):
    return torch.ones(N, dtype=torch.float64, requires_grad=grad, device=device)


def chain(x):
    """x + x and its double live together; x was there before."""
    return (x + x) * x


def saved_results(x):
    """exp saves its result: after three of them three results are alive, all held for the way back."""
    return x.exp().exp().exp()


def views(x):
    """A view shares its storage, an input was there before: one new storage."""
    y = x + x
    return [x.view(10, -1), y, y[1:], y.view(2, -1)]


def in_place(x):
    """A sum and one addend, five times."""
    total = torch.zeros(N, dtype=torch.float64)
    for _ in range(5):
        total += torch.ones(N, dtype=torch.float64)
    return total


def backward(x):
    """x·x saves x alone. On the way back: the sum 8, its seed 8, two slopes and what they add up to.

    Autograd adds the second slope to the first in place, but not while a dispatch mode watches: 8N more.
    """
    return torch.autograd.grad((x * x).sum(), x)[0]


def double_backward(x):
    """exp's result e and the seed 8 are saved for the gradient g; then v, v·1 and (v·1)·e, the seed gone by then."""
    g = torch.autograd.grad(x.exp().sum(), x, create_graph=True)[0]
    return torch.autograd.grad(g, x, torch.ones_like(x))[0]


def saved_after_a_death(x):
    """a dies before d is made; c and d are saved for the squares of both, which are the other two alive."""
    a, c = x + x, x + x
    del a
    d = x + x
    return [c.requires_grad_() * c, d.requires_grad_() * d]


@pytest.mark.cpu_only(reason="the profiler's log is of the CPU's allocator")
@pytest.mark.parametrize(
    ("graph", "grad", "live", "saved", "allocated"),
    [
        (chain, False, 16 * N, 0, 16 * N),
        (saved_results, True, 24 * N, 24 * N, 24 * N),
        (views, False, 8 * N, 0, 8 * N),
        (in_place, False, 16 * N, 0, 16 * N),
        (saved_after_a_death, False, 32 * N, 16 * N, 32 * N),
        (backward, True, 24 * N + 16, 0, 16 * N + 16),
        (double_backward, True, 40 * N, 8 * N + 8, 40 * N),
    ],
)
def test_both_readings_are_what_one_counts_by_hand(graph, grad, live, saved, allocated):
    x = ones(grad)
    with allocations() as changes:
        out = graph(x)
    del out
    assert max(accumulate(changes)) == allocated
    with LiveBytes() as tracker:
        out = graph(x)
    del out
    assert (tracker.peak, tracker.peak_saved) == (live, saved)
    assert (tracker.live, tracker.saved) == (0, 0)


def test_watching_a_graph_that_saves_its_results_does_not_keep_it_alive(device):
    """A node that owned a tensor that knows the node would never be freed, not even by the garbage collector."""
    with LiveBytes() as tracker:
        for _ in range(3):
            x = ones(grad=True, device=device)
            g = torch.autograd.grad(x.exp().sum(), x, create_graph=True)[0]
            torch.autograd.grad(g, x, torch.ones_like(x), retain_graph=True)
            del g, x
    assert (tracker.live, tracker.saved) == (0, 0)


VARIANTS = [
    ("maml", {}),
    ("fomaml", {}),
    ("reptile", {}),
    ("remat-maml", {"segment": 1}),
    ("remat-maml", {"segment": "sqrt"}),
    ("imaml", {"variant": "paper-gd"}),
    ("imaml", {"variant": "paper-hf"}),
    ("imaml", {"variant": "official"}),
    ("amaml", {}),
    ("amaml", {"num_states": 5, "backward": "modified_euler"}),
    ("amaml", {"num_states": 5, "backward": "rk4"}),
    ("amaml", {"num_states": "accepted", "backward": "rk4"}),
    ("amaml", {"num_states": "accepted", "forward": "rk43", "backward": "discrete"}),
    ("amaml", {"forward": "rk4", "backward": "rk4", "checkpoint": "sqrt"}),
]


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_tracker_and_allocator_agree_on_every_method(make_cell, method, options, device):
    """Within 10 % is asked; on these networks they agree but for the 8 bytes of a Python number here and there."""
    tracked, told = (
        measured(make_cell, probe, method, inner_steps=6, **options).metrics for probe in ("memory", "allocator")
    )
    if device == "cpu":
        assert tracked["peak_live_bytes"] == pytest.approx(told["peak_allocated_bytes"], rel=0.01)
    else:  # as requested, for blocks are rounded; kernels want scratch space too
        assert tracked["peak_live_bytes"] == pytest.approx(told["peak_cuda_requested_bytes"], rel=0.1)
    assert 0 < tracked["peak_saved_bytes"] < tracked["peak_live_bytes"]


def test_the_graph_of_maml_grows_with_its_steps_and_fixed_states_do_not(make_cell):
    def bytes_at(method, steps, **options):
        return measured(make_cell, "memory", method, inner_steps=steps, **options).metrics["peak_live_bytes"]

    twenty, forty, eighty = (bytes_at("maml", steps) for steps in (20, 40, 80))
    assert eighty - forty == 2 * (forty - twenty) > 0  # linear to the byte, not exponential
    assert bytes_at("amaml", 80, num_states=5) == bytes_at("amaml", 40, num_states=5)


def test_checkpoints_bound_the_states_that_are_kept_by_a_square_root(make_cell):
    def states_at(steps, **options):
        result = measured(make_cell, "memory", "amaml", inner_steps=steps, forward="euler", backward="euler", **options)
        return result.metrics["peak_live_bytes"], result.metrics["states_stored"]

    (few, kept), (many, kept_at_four_times) = states_at(36, checkpoint="sqrt"), states_at(144, checkpoint="sqrt")
    assert (kept, kept_at_four_times) == (13, 25)  # √K checkpoints, the end, and √K states of a segment
    state, point = 5 * 37 * 4, 5 * (8 + 8 + 4 + 4)  # of five tasks; a point's time, its width, both in both precisions
    assert many - few <= 14 * state + 108 * point  # twelve states more, and two that the segment's own work needs
    assert states_at(144)[0] - states_at(36)[0] > 108 * state


def test_tracked_states_are_all_that_grows(make_cell):
    def bytes_at(states):
        options = {"forward": "rk4", "backward": "rk4", "num_states": states}
        return measured(make_cell, "memory", "amaml", inner_steps=50, **options).metrics["peak_live_bytes"]

    state = 5 * 37 * 4
    times = 5 * (8 + 4 + 4 + 4)  # a point's time in float64, as float32, the widths
    assert bytes_at(100) - bytes_at(50) <= 50 * (state + times)
