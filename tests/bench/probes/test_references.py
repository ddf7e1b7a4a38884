import pytest

from amaml_core import InputError
from bench.probes import honesty, oracles, tolerance
from bench.probes.references import measure
from bench.problems import make_problem
from bench.records import Cell

OPTIONS = {"kind": "mlp", "samples": 2, "examples": 6}


def measured(**options):
    problem = make_problem("networks", OPTIONS)
    every, _ = problem.resolve_method("amaml", {"inner_steps": 10, "inner_lr": 0.05} | options)
    about = {"problem": "networks", "method": "amaml", "probe": "references", "dtype": "float64"}
    return measure(problem, Cell(**about, options=every, problem_options=OPTIONS))


def test_references_are_the_derivatives_of_plain_flows():
    found = measured()
    assert found.metrics["draws"] == len(found.samples["reference_mismatch"]) == 2
    assert found.metrics["reference_mismatch"] == max(found.samples["reference_mismatch"]) < 1e-5


def test_one_that_is_off_is_seen(monkeypatch):
    right = oracles.references
    off = lambda *about: {target: 1.05 * grad for target, grad in right(*about).items()}  # noqa: E731
    monkeypatch.setattr(oracles, "references", off)
    assert 0.01 < measured().metrics["reference_mismatch"] < 0.1


def test_where_there_is_none_nothing_is_said(monkeypatch):
    monkeypatch.setattr(oracles, "references", lambda *about: {})
    assert measured().metrics == {"draws": 0}


def test_what_has_no_plain_flow_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="use prox=0"):
        measured(prox=0.5)
    problem = make_problem("closed_form", {"ode": "forced_linear"})
    options, _ = problem.resolve_method("adjoint", {"inner_steps": 10, "inner_lr": 0.05})
    for probe in (honesty, tolerance):
        name = probe.__name__.rpartition(".")[2]
        with pytest.raises(InputError, match=f"no model, which the probe {name} needs"):
            probe.measure(problem, Cell(problem="closed_form", method="adjoint", options=options, probe=name))
