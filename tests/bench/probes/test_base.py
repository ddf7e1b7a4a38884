import pytest
from stand_ins import measured

from amaml_core import InputError, Status
from bench.probes import PROBES, load
from bench.probes.base import Measurement
from bench.problems import make_problem
from bench.records import METRICS


@pytest.mark.parametrize("probe", ["memory", "counts", "floor"])
def test_probes_that_watch_operators_refuse_compiled_code(make_cell, probe):
    cell = make_cell("maml", probe).model_copy(update={"engine": "compiled"})
    with pytest.raises(InputError, match="eager engine only"):
        load(probe)(make_problem("cosmixture", {"shots": 5, "width": 4}), cell)


def test_not_converged_tasks_are_counted():
    result = Measurement()
    result.judge([Status("ok"), Status("not_converged", "x"), Status("not_converged", "y")])
    assert (result.status, result.metrics) == ("ok", {"not_converged_tasks": 2})


def test_every_metric_is_declared(make_cell, monkeypatch):
    monkeypatch.setattr("bench.probes.floor._seconds", lambda *layout: 1.0)
    for probe in set(PROBES) - {"quality"}:  # whose problems are others
        assert set(measured(make_cell, probe, "imaml").metrics) <= set(METRICS)
