import pytest
import torch

from bench.probes.error import cosine, measure, relative_error
from bench.problems import make_problem


def test_errors_are_the_mean_of_their_samples(make_cell):
    cell = make_cell("maml").model_copy(update={"dtype": "float64"})
    problem = make_problem("cosmixture", {"shots": 5, "width": 4, "samples": 3})
    result = measure(problem, cell)
    assert result.metrics["rel_error_unrolled"] < 1e-12 < 1e-5 < result.metrics["rel_error_flow"]
    assert result.metrics["rel_error_flow"] == pytest.approx(sum(result.samples["rel_error_flow"]) / 3)


def test_a_diverged_cell_has_a_reason_and_no_flattering_mean(make_cell):
    cell = make_cell("maml", inner_lr=1e4, inner_steps=40)
    result = measure(make_problem("cosmixture", {"shots": 5, "samples": 2}), cell)
    assert result.status == "diverged"
    assert "inner_lr" in result.reason
    assert not result.metrics


def test_distances():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0])
    assert relative_error(a, b) == pytest.approx(10**0.5 / 5)
    assert cosine(a, b) == pytest.approx(0.8)


def test_an_estimate_is_recorded_and_one_that_could_not_be_had_is_not(make_cell, monkeypatch):
    problem = make_problem("cosmixture", {"shots": 5, "width": 4})
    options, _ = problem.resolve_method(
        "amaml", {"inner_steps": 5, "inner_lr": 0.01, "forward": "rk4", "backward": "rk4", "estimate_error": True}
    )
    cell = make_cell("amaml").model_copy(update={"dtype": "float64", "options": options})
    assert 0 < measure(problem, cell).metrics["error_estimate"] < 1e-2
    monkeypatch.setattr("amaml_core.methods.accuracy.distance", lambda found, *_: found[:, 0].new_full((5,), torch.inf))
    assert "error_estimate" not in measure(problem, cell).metrics  # JSON has no infinity
