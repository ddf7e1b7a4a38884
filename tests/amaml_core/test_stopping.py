from dataclasses import replace
from types import SimpleNamespace

import oracles
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


# in amaml


PROX = pytest.mark.parametrize("prox", [0.0, 1.5])


def run(case, horizon=1.0, steps=20, **options):
    method = am.create_method("amaml", inner_steps=steps, inner_lr=horizon / steps, **options)
    return method.meta_gradient(case.problem, case.theta, case.tasks)


def overfitting() -> oracles.Case:
    """Three examples to learn from, noisy query targets: the query loss turns soon, and not for all tasks alike."""
    case = oracles.regression(examples=3, seed=4)
    noise = 0.5 * torch.randn(3, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = case.tasks
    return replace(case, tasks=am.TaskBatch(t.support_x, t.support_y, t.query_x, t.query_y + noise))


def naive_stop(case, b, steps, lr, prox, rule) -> int:
    path = [oracles.descend(case.support(b), case.theta, j, lr, prox) for j in range(steps + 1)]
    if isinstance(rule, am.GradientNorm):
        slopes = [oracles.gradient(case.support(b), u) + prox * (u - case.theta) for u in path]
        return next((j for j in range(1, steps) if slopes[j].norm() <= rule.tol), steps)
    losses = [float(case.query(b)(u)) for u in path]
    best = 1
    for j in range(2, steps + 1):
        if j - best > rule.patience:
            break
        best = j if losses[j] < losses[best] else best
    return best


@PROX
@pytest.mark.parametrize("rule", [am.GradientNorm(0.5), am.QueryLoss(1), am.QueryLoss(4)], ids=str)
def test_each_task_stops_where_a_naive_loop_stops(prox, rule):
    case, steps, lr = overfitting(), 25, 0.04
    found = run(case, steps * lr, steps, forward="euler", backward="euler", prox=prox, stopping=rule)
    stops = [naive_stop(case, b, steps, lr, prox, rule) for b in range(3)]
    assert found.horizon.tolist() == pytest.approx([lr * j for j in stops])
    assert len(set(stops)) > 1
    assert min(stops) < steps
    for b, j in enumerate(stops):
        expected = oracles.unrolled_gradient(case.support(b), case.query(b), case.theta, j, lr, prox)
        assert oracles.relative(found.task_grads[b], expected) < 1e-10
        assert oracles.relative(found.adapted[b], oracles.descend(case.support(b), case.theta, j, lr, prox)) < 1e-12


@PROX
@pytest.mark.parametrize("rule", [am.GradientNorm(0.5), am.QueryLoss(3)], ids=str)
@pytest.mark.parametrize("backward", ["rk4", "backsolve"])
def test_stopping_gives_the_gradient_at_the_horizon_it_chose(prox, rule, backward):
    case = overfitting()
    options = {"prox": prox, "backward": backward, "num_states": 100, "forward": "dopri8", "rtol": 1e-12, "atol": 1e-13}
    stopped = run(case, **options, stopping=rule)
    again = run(case.with_horizon(*stopped.horizon.tolist()), **options)
    assert stopped.horizon.min() < 1.0
    assert oracles.relative(stopped.task_grads, again.task_grads) < 1e-6
    assert oracles.relative(stopped.adapted, again.adapted) < 1e-7
    assert torch.allclose(stopped.horizon_grad, again.horizon_grad, rtol=1e-5, atol=1e-7)


def test_a_rule_that_never_fires_changes_nothing(case):
    plain, stopped = run(case), run(case, stopping=am.GradientNorm(1e-12))
    assert torch.equal(plain.task_grads, stopped.task_grads)
    assert stopped.horizon.tolist() == pytest.approx(plain.horizon.tolist(), rel=1e-15)


def test_stopping_on_the_solvers_own_steps():
    case = overfitting()
    options = {"num_states": "accepted", "backward": "rk4", "rtol": 1e-10, "atol": 1e-12}
    stopped = run(case, **options, stopping=am.QueryLoss(3))
    expected = torch.stack(
        [oracles.flow_gradient(case.support(b), case.query(b), case.theta, float(stopped.horizon[b])) for b in range(3)]
    )
    assert stopped.horizon.min() < 1.0
    assert oracles.relative(stopped.task_grads, expected) < 1e-6
