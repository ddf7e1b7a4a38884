from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Case

import amaml_core as am

curves = st.integers(1, 12).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 9), min_size=k + 1, max_size=k + 1), min_size=1, max_size=4)
)


def played_back(curves: list[list[int]]) -> tuple[SimpleNamespace, am.Trajectory]:
    """A problem whose query loss and gradient norm at point j of task b are both curves[b][j]."""
    states = torch.tensor(curves, dtype=torch.float64).T.unsqueeze(-1)
    inner = SimpleNamespace(tasks=curves, query_loss=lambda u: u[:, 0], gradient=lambda u: u)
    times = torch.arange(len(states), dtype=torch.float64).unsqueeze(1).expand(-1, len(curves))
    return inner, am.Trajectory(times, states, steps=len(states) - 1)


def first_small(norms: list[int], tol: float) -> int:
    return next((j for j, norm in enumerate(norms) if j > 0 and norm <= tol), len(norms) - 1)


def patient_best(losses: list[int], patience: int) -> int:
    best, failures = 1, 0
    for j in range(2, len(losses)):
        if losses[j] < losses[best]:
            best, failures = j, 0
        else:
            failures += 1
        if failures == patience:
            break
    return best


@settings(deadline=None, derandomize=True, max_examples=100)
@given(curves=curves, tol=st.floats(0.5, 9.5))
def test_gradient_norm_stops_at_the_first_small_one(curves, tol):
    chosen = am.GradientNorm(tol).index(*played_back(curves))
    assert chosen.tolist() == [first_small(curve, tol) for curve in curves]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(curves=curves, patience=st.integers(1, 5))
def test_query_loss_stops_at_the_best_before_patience_ran_out(curves, patience):
    chosen = am.QueryLoss(patience).index(*played_back(curves))
    assert chosen.tolist() == [patient_best(curve, patience) for curve in curves]


def test_a_stopped_trajectory_stands_still():
    _, path = played_back([[9, 8, 7, 6], [5, 4, 3, 2]])
    stopped = path.stopped_at(torch.tensor([1, 2]))
    assert stopped.times.T.tolist() == [[0, 1, 1], [0, 1, 2]]
    assert torch.stack(list(stopped.states))[..., 0].T.tolist() == [[9, 8, 8], [5, 4, 3]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: am.GradientNorm(0.0),
        lambda: am.GradientNorm(-1.0),
        lambda: am.GradientNorm(float("nan")),
        lambda: am.GradientNorm("0.1"),
        lambda: am.QueryLoss(0),
        lambda: am.QueryLoss(1.5),
    ],
)
def test_bad_rules_are_refused_by_name(make):
    with pytest.raises(am.InputError, match=r"GradientNorm.tol=|QueryLoss.patience="):
        make()


@pytest.mark.parametrize("rule", ["query-loss", ("query",), am.QueryLoss, 3])
def test_what_is_no_rule_is_refused(rule, regression: Case):
    with pytest.raises(am.InputError, match="stopping="):
        am.create_method("amaml", inner_steps=2, inner_lr=0.1, stopping=rule)
