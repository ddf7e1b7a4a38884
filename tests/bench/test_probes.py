import pytest
import torch

from amaml_core import Status
from bench.probes import PROBES
from bench.probes.base import Measurement
from bench.probes.error import cosine, relative_error
from bench.probes.memory import LiveBytes
from bench.problems import make_problem
from bench.records import METRICS

N = 1000  # float64: 8,000 bytes


def peak(function, *inputs):
    with LiveBytes() as tracker:
        kept = function(*inputs)
    live = tracker.live
    del kept
    return tracker.peak, live, tracker.live


def test_live_bytes_of_a_chain_without_graph():
    """x + 1 and its double live together; x was there before."""
    x = torch.ones(N, dtype=torch.float64)
    assert peak(lambda x: (x + 1) * 2, x) == (16 * N, 8 * N, 0)


def test_live_bytes_of_a_graph_that_saves_its_results():
    """exp saves its result: after three of them three results are alive."""
    x = torch.ones(N, dtype=torch.float64, requires_grad=True)
    assert peak(lambda x: x.exp().exp().exp(), x) == (24 * N, 24 * N, 0)


def test_live_bytes_count_a_view_once_and_an_input_never():
    x = torch.ones(N, dtype=torch.float64)
    assert peak(lambda x: [x.view(10, -1), (y := x + x), y[1:], y.view(2, -1)], x) == (8 * N, 8 * N, 0)


def test_live_bytes_of_a_backward_pass():
    """x·x saves x alone: product 8N, its sum 8; then seed 8, the expanded seed is a view, 2 slopes and their sum."""
    x = torch.ones(N, dtype=torch.float64, requires_grad=True)
    top, live, after = peak(lambda x: torch.autograd.grad((x * x).sum(), x)[0], x)
    assert (live, after) == (8 * N, 0)
    assert 24 * N <= top <= 32 * N + 16


def test_live_bytes_of_inplace_operators_and_freed_temporaries():
    def work():
        total = torch.zeros(N, dtype=torch.float64)
        for _ in range(5):
            total += torch.ones(N, dtype=torch.float64)
        return total

    assert peak(work) == (16 * N, 8 * N, 0)


def measured(make_cell, probe, method, **options):
    cell = make_cell(method, probe, **options)
    return PROBES[probe](make_problem("cosmixture", {"shots": 5, "width": 4}), cell)


@pytest.mark.parametrize("probe", ["counts", "memory"])
@pytest.mark.parametrize("method", ["maml", "amaml", "fomaml", "imaml"])
def test_counters_repeat_exactly(make_cell, probe, method):
    first, second = (measured(make_cell, probe, method).metrics for _ in range(2))
    assert first == second
    assert all(isinstance(value, int) and value >= 0 for value in first.values())


def test_counts_are_what_the_method_says(make_cell):
    maml = measured(make_cell, "counts", "maml", inner_steps=7).metrics
    assert (maml["grad_evals"], maml["hvp_evals"]) == (7, 7)
    assert maml["flops"] > measured(make_cell, "counts", "fomaml", inner_steps=7).metrics["flops"] > 0


def test_the_graph_of_maml_grows_with_its_steps_and_fixed_states_do_not(make_cell):
    def bytes_at(method, steps, **options):
        return measured(make_cell, "memory", method, inner_steps=steps, **options).metrics["peak_live_bytes"]

    twenty, forty, eighty = (bytes_at("maml", steps) for steps in (20, 40, 80))
    assert eighty - forty == 2 * (forty - twenty) > 0  # linear to the byte, not exponential
    assert bytes_at("amaml", 80, num_states=5) == bytes_at("amaml", 40, num_states=5)


def test_time_keeps_its_raw_samples(make_cell):
    result = measured(make_cell, "time", "fomaml")
    assert len(result.samples["outer_update_seconds"]) >= 5
    assert min(result.samples["outer_update_seconds"]) <= result.metrics["outer_update_seconds"]


def test_errors_are_the_mean_of_their_samples(make_cell):
    cell = make_cell("maml").model_copy(update={"dtype": "float64"})
    problem = make_problem("cosmixture", {"shots": 5, "width": 4, "samples": 3})
    result = PROBES["error"](problem, cell)
    assert result.metrics["rel_error_unrolled"] < 1e-12 < 1e-5 < result.metrics["rel_error_flow"]
    assert result.metrics["rel_error_flow"] == pytest.approx(sum(result.samples["rel_error_flow"]) / 3)


def test_a_diverged_cell_has_a_reason_and_no_flattering_mean(make_cell):
    cell = make_cell("maml", inner_lr=1e4, inner_steps=40)
    result = PROBES["error"](make_problem("cosmixture", {"shots": 5, "samples": 2}), cell)
    assert result.status == "diverged"
    assert "inner_lr" in result.reason
    assert not result.metrics


def test_not_converged_tasks_are_counted():
    result = Measurement()
    result.judge([Status("ok"), Status("not_converged", "x"), Status("not_converged", "y")])
    assert (result.status, result.metrics) == ("ok", {"not_converged_tasks": 2})


def test_every_metric_is_declared(make_cell):
    for probe in PROBES:
        assert set(measured(make_cell, probe, "imaml").metrics) <= set(METRICS)


def test_distances():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0])
    assert relative_error(a, b) == pytest.approx(10**0.5 / 5)
    assert cosine(a, b) == pytest.approx(0.8)
