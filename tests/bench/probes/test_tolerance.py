import pytest

from bench.probes import oracles
from bench.probes.tolerance import measure
from bench.problems import make_problem
from bench.records import Cell

ABOUT = {"problem": "networks", "method": "amaml", "probe": "tolerance", "dtype": "float64"}


def measured(**options):
    problem = make_problem("networks", {"kind": "mlp", "samples": 1, "examples": 6})
    every, _ = problem.resolve_method("amaml", {"inner_steps": 10, "inner_lr": 0.05} | options)
    return measure(problem, Cell(**ABOUT, options=every, problem_options={"kind": "mlp", "samples": 1, "examples": 6}))


def test_a_tolerance_is_met_and_later_updates_are_cheaper():
    found = measured(grad_rtol=1e-2)
    assert found.metrics["draws"] == found.metrics["met_draws"] == 2  # updates of the one sample
    assert found.metrics["unmet_told_draws"] == 0
    assert found.metrics["next_price"] < found.metrics["price"]
    assert max(found.samples["next_rel_error"]) <= 1e-2


def test_of_settings_by_hand_no_tolerance_is_counted():
    found = measured(forward="rk4", backward="rk4", num_states=10, estimate_error=False)
    assert "met_draws" not in found.metrics
    # 4 gradients a step there; back, both ends of it and the middle are linearised, with 4 products; then the
    # query's gradient and two for the defect
    assert found.metrics["price"] == found.metrics["next_price"] == pytest.approx(140, abs=20)
    assert found.metrics["rel_error"] == found.metrics["next_rel_error"] < 1e-2


def test_a_tolerance_that_is_not_met_and_not_told_is_counted(monkeypatch):
    right = oracles.references
    off = lambda *about: {target: 1.5 * grad for target, grad in right(*about).items()}  # noqa: E731
    monkeypatch.setattr(oracles, "references", off)
    found = measured(grad_rtol=1e-1)
    assert found.metrics["met_draws"] == found.metrics["unmet_told_draws"] == 0
