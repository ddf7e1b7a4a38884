import math
from dataclasses import replace

import oracles
import pytest
import torch
from torch import nn

import amaml_core as am

PROX = pytest.mark.parametrize("prox", [0.0, 1.5])
TIGHT = {"forward": "dopri8", "rtol": 1e-12, "atol": 1e-13}
EXACT = {**TIGHT, "backward": "rk4", "num_states": 150}


def run(case, horizon=1.0, steps=20, **options):
    method = am.create_method("amaml", inner_steps=steps, inner_lr=horizon / steps, **options)
    return method.meta_gradient(case.problem, case.theta, case.tasks)


# what it equals


@pytest.mark.parametrize("steps", [1, 8])
@PROX
def test_euler_both_ways_is_unrolled_proximal_descent(case, steps, prox):
    found = run(case, 0.05 * steps, steps, forward="euler", backward="euler", prox=prox)
    expected = case.per_task(lambda s, q: oracles.unrolled_gradient(s, q, case.theta, steps, 0.05, prox))
    assert oracles.relative(found.task_grads, expected) < 1e-10
    assert found.horizon_grad is None


@pytest.mark.parametrize("steps", [1, 8])
def test_euler_both_ways_is_maml(case, steps):
    options = {"inner_steps": steps, "inner_lr": 0.05}
    maml = am.create_method("maml", **options).meta_gradient(case.problem, case.theta, case.tasks)
    found = am.create_method("amaml", forward="euler", backward="euler", num_states=steps, **options).meta_gradient(
        case.problem, case.theta, case.tasks
    )
    assert oracles.relative(found.task_grads, maml.task_grads) < 1e-10
    assert torch.allclose(found.adapted, maml.adapted, rtol=1e-13)


@PROX
def test_flow_gradient_is_the_slope_through_dop853(case, prox):
    directions = torch.randn(2, case.problem.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def slopes(support, query):
        return oracles.differences(lambda t: query(oracles.flow(support, t, 1.0, prox)), case.theta, directions)

    found = run(case, prox=prox, **EXACT)
    assert oracles.relative(found.task_grads @ directions.T, case.per_task(slopes)) < 1e-6


@PROX
def test_flow_gradient_of_a_tiny_network_in_every_coordinate(prox):
    case = oracles.regression(hidden=2, tasks=1)

    def slopes(support, query):
        return oracles.differences(
            lambda t: query(oracles.flow(support, t, 0.5, prox)), case.theta, torch.eye(15, dtype=torch.float64)
        )

    assert oracles.relative(run(case, 0.5, prox=prox, **EXACT).task_grads, case.per_task(slopes)) < 1e-6


def test_flow_gradient_of_the_papers_network():
    case = oracles.regression(hidden=32, tasks=1, examples=20)
    directions = torch.randn(2, 1185, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = oracles.differences(
        lambda t: case.query(0)(oracles.flow(case.support(0), t, 0.5)), case.theta, directions
    )
    found = run(case, 0.5, **{**EXACT, "num_states": 100}).grad
    assert oracles.relative(found @ directions.T, expected) < 1e-6


@PROX
def test_adapted_parameters_are_the_end_of_the_flow(case, prox):
    found = run(case, prox=prox, num_states=10, **TIGHT)
    expected = case.per_task(lambda s, q: oracles.flow(s, case.theta, 1.0, prox))
    assert oracles.relative(found.adapted, expected) < 1e-10
    assert torch.allclose(found.query_loss, torch.stack([case.query(b)(u) for b, u in enumerate(expected)]))


# how fast it gets there


@pytest.mark.parametrize(
    ("backward", "fixed", "states", "order", "tolerance"),
    [("euler", "euler", 80, 1.0, 0.1), ("modified_euler", "heun", 80, 2.0, 0.1), ("rk4", "rk4", 40, 4.0, 0.3)],
)
@pytest.mark.parametrize("grid", ["exact forward", "fixed forward"])
@PROX
def test_observed_order(case, flow_gradient, prox, backward, fixed, states, order, tolerance, grid):
    forward = TIGHT if grid == "exact forward" else {"forward": fixed}
    errors = [
        oracles.relative(
            run(case, prox=prox, backward=backward, num_states=k, **forward).task_grads, flow_gradient(case, 1.0, prox)
        )
        for k in (states, 2 * states)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=tolerance)


@PROX
def test_on_accepted_steps_rtol_governs_both_ways(case, flow_gradient, prox):
    errors = [
        oracles.relative(
            run(case, prox=prox, backward="rk4", num_states="accepted", rtol=r, atol=r).task_grads,
            flow_gradient(case, 1.0, prox),
        )
        for r in (1e-4, 1e-7, 1e-10)
    ]
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 20
    assert errors[2] < 1e-6


@pytest.mark.parametrize("forward", am.SOLVERS)
@pytest.mark.parametrize("backward", ["modified_euler", "backsolve"])
def test_every_solver_reaches_the_flow(regression, flow_gradient, forward, backward):
    adaptive = {"rtol": 1e-5, "atol": 1e-6} if forward in ("adaptive_heun", "fehlberg2", "bosh3") else {}
    found = run(regression, 0.3, forward=forward, backward=backward, num_states=60, **adaptive)
    tolerance = 0.1 if forward == "euler" else 2e-3
    assert oracles.relative(found.task_grads, flow_gradient(regression, 0.3)) < tolerance
    assert set(found.status) == {"ok"}


# what it counts


def test_tracked_states_cost_what_they_should(regression):
    stats = run(regression, forward="rk4", num_states=7).stats
    assert (stats["forward_steps"], stats["states_stored"]) == (7, 8)
    assert (stats["linearizations"], stats["hvp_evals"]) == (8, 14)
    assert stats["grad_evals"] == 4 * 7 + 2  # and one each for dJ/dT and the defect
    backsolve = run(regression, 0.3, forward="rk4", num_states=7, backward="backsolve").stats
    assert backsolve["states_stored"] == 1
    assert backsolve["hvp_evals"] == 4 * 7


def test_states_default_to_the_inner_steps(regression):
    assert run(regression, steps=13).stats["states_stored"] == 14


@pytest.mark.parametrize("forward", ["dopri5", "rk4"])
def test_a_result_does_not_hold_the_trajectory(regression, forward):
    adapted = run(regression, steps=50, forward=forward).adapted
    assert adapted.untyped_storage().nbytes() == adapted.numel() * 8


# each task's own horizon


@PROX
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"forward": "rk4", "backward": "rk4", "num_states": 12}, 1e-12),
        ({"forward": "heun", "num_states": 12}, 1e-12),
        ({"forward": "euler", "backward": "euler", "num_states": 12}, 1e-12),
        ({"num_states": 12, "rtol": 1e-10, "atol": 1e-12}, 1e-7),
        ({"num_states": "accepted", "backward": "rk4", "rtol": 1e-9, "atol": 1e-11}, 1e-6),
        ({"backward": "backsolve", "rtol": 1e-9, "atol": 1e-11}, 1e-5),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_horizons_in_one_batch_equal_one_task_runs(case, prox, options, tolerance):
    horizons = [0.2, 0.9, 0.5, 0.7][: len(case.tasks)]
    together = run(case.with_horizon(*horizons), horizon=123.0, prox=prox, **options)
    for b, horizon in enumerate(horizons):
        alone = run(replace(case, tasks=case.only(b)), horizon, prox=prox, **options)
        assert oracles.relative(together.task_grads[b], alone.task_grads[0]) < tolerance
        assert oracles.relative(together.adapted[b], alone.adapted[0]) < tolerance
        if alone.horizon_grad is not None:
            assert torch.allclose(together.horizon_grad[b], alone.horizon_grad[0], rtol=tolerance, atol=tolerance)
    assert together.horizon.tolist() == horizons


@PROX
@pytest.mark.parametrize("backward", ["modified_euler", "backsolve"])
def test_horizon_grad_is_the_slope_in_time(case, prox, backward):
    horizons = [0.2, 0.9, 0.5, 0.7][: len(case.tasks)]
    found = run(case.with_horizon(*horizons), prox=prox, backward=backward, num_states=20, **TIGHT)
    for b, horizon in enumerate(horizons):
        slope = oracles.differences(
            lambda t, b=b: case.query(b)(oracles.flow(case.support(b), case.theta, float(t), prox)),
            torch.tensor([horizon], dtype=torch.float64),
            torch.ones(1, 1, dtype=torch.float64),
        )
        assert torch.allclose(found.horizon_grad[b], slope[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, None])
@pytest.mark.parametrize(
    "options", [{"forward": "rk4", "prox": 1.0}, {"rtol": 1e-10, "atol": 1e-12, "stopping": am.QueryLoss(2)}]
)
def test_chunks_change_nothing(case, size, options):
    chunked = replace(case, problem=am.MetaProblem(case.model, case.loss, chunk_size=size))
    horizons = [0.2, 0.9, 0.5, 0.7][: len(case.tasks)]
    whole, found = (run(c.with_horizon(*horizons), **options) for c in (case, chunked))
    assert oracles.relative(found.task_grads, whole.task_grads) < 1e-8
    assert torch.allclose(found.horizon_grad, whole.horizon_grad, rtol=1e-8, atol=1e-10)
    assert (found.horizon.tolist(), found.status) == (whole.horizon.tolist(), whole.status)


# what goes wrong, and is told


@PROX
def test_backsolve_is_right_over_a_short_horizon(case, flow_gradient, prox):
    found = run(case, 0.5, prox=prox, backward="backsolve", rtol=1e-10, atol=1e-12)
    assert oracles.relative(found.task_grads, flow_gradient(case, 0.5, prox)) < 1e-7
    assert set(found.status) == {"ok"}


def test_backsolve_that_missed_the_start_is_told_and_tracked_states_stay_right(regression, flow_gradient):
    back = run(regression, 6.0, 200, backward="backsolve", forward="rk4")
    assert list(back.status) == ["diverged"] * 3
    assert all("track the states" in status.remedy for status in back.status)
    tracked = run(regression, 6.0, 200, backward="rk4", rtol=1e-9, atol=1e-11)
    expected = flow_gradient(regression, 6.0)
    assert set(tracked.status) == {"ok"}
    assert oracles.relative(tracked.task_grads, expected) < 1e-5
    assert oracles.relative(back.task_grads, expected) > 1e-2


def test_an_adaptive_backsolve_gives_up_in_bounded_time():
    calls = []

    def counted(prediction, target):
        calls.append(1)
        if len(calls) > 10_000:
            pytest.fail("the back-solve follows its own instability without end")
        return nn.functional.mse_loss(prediction, target)

    case = oracles.regression()
    found = run(replace(case, problem=am.MetaProblem(case.model, counted)), 5.0, backward="backsolve")
    assert list(found.status) == ["diverged"] * 3
    assert all("track the states" in status.remedy for status in found.status)
    assert torch.isfinite(found.adapted).all()  # the way out was good and is kept
    assert torch.isfinite(found.horizon_grad).all()


def test_a_changed_number_of_steps_changes_the_default_number_of_states():
    method = replace(am.create_method("amaml", inner_steps=20, inner_lr=0.1), inner_steps=50)
    assert method.options()["num_states"] == 50
    assert am.create_method("amaml", **method.options()).options() == method.options()


def test_too_few_states_for_the_curvature_are_told(regression):
    found = run(regression, 20.0, 200, num_states=20)
    assert list(found.status) == ["diverged"] * 3
    assert all("num_states" in status.remedy for status in found.status)


def poisoned(where: int) -> oracles.Case:
    """One task whose inner loss is NaN."""

    def loss(prediction, target):
        poison = torch.where(target > 50, torch.nan, 1.0).to(prediction.dtype)
        return (poison * (prediction - target) ** 2).mean()

    case = oracles.regression()
    t = case.tasks
    y = t.support_y.clone()
    y[where] = 100.0
    return replace(
        case,
        loss=loss,
        problem=am.MetaProblem(case.model, loss),
        tasks=am.TaskBatch(t.support_x, y, t.query_x, t.query_y),
    )


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"forward": "rk4"},
        {"num_states": "accepted", "backward": "rk4"},
        {"backward": "backsolve"},
        {"stopping": am.QueryLoss(2)},
    ],
    ids=str,
)
def test_a_task_that_fails_leaves_its_neighbours_right(where, options):
    case = poisoned(where)
    healthy = [b for b in range(3) if b != where]
    found = run(case, **options)
    clean = run(replace(case, tasks=case.tasks[torch.tensor(healthy)]), **options)
    assert [s == "diverged" for s in found.status] == [b == where for b in range(3)]
    assert found.status[where].remedy
    assert oracles.relative(found.task_grads[healthy], clean.task_grads) < 1e-3
    assert not torch.isfinite(found.task_grads[where]).any()
    assert not torch.isfinite(found.grad).any()


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("forward", ["dopri5", "rk4"])
def test_adaptation_survives_a_failing_task_too(where, forward):
    case = poisoned(where)
    method = am.create_method("amaml", inner_steps=10, inner_lr=0.1, forward=forward)
    found = method.adapt(case.problem, case.theta, case.tasks)
    assert [s == "diverged" for s in found.status] == [b == where for b in range(3)]
    assert torch.isfinite(found.adapted).all(dim=1).tolist() == [b != where for b in range(3)]


def test_a_horizon_that_a_task_cannot_stand_leaves_its_neighbours_right(regression):
    method = am.create_method("amaml", inner_steps=20, inner_lr=0.05, forward="heun")
    case = regression.with_horizon(0.5, 1e200, 0.9)
    found = method.meta_gradient(case.problem, case.theta, case.tasks)
    assert list(found.status) == ["ok", "diverged", "ok"]
    calm = method.meta_gradient(case.problem, case.theta, case.tasks[torch.tensor([0, 2])])
    assert oracles.relative(found.task_grads[[0, 2]], calm.task_grads) < 1e-12


# its options


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, "flow"),
        ({"forward": "euler"}, "flow"),
        ({"backward": "euler"}, "flow"),
        ({"forward": "rk4", "backward": "backsolve"}, "flow"),
        ({"forward": "euler", "backward": "euler"}, "unrolled"),
        ({"forward": "euler", "backward": "euler", "prox": 1.0}, "unrolled"),
    ],
)
def test_target_follows_from_the_options(options, target):
    assert am.create_method("amaml", inner_steps=2, inner_lr=0.1, **options).target == target


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"forward": "dopri"}, "forward='dopri'.*dopri5"),
        ({"backward": "heun"}, "backward='heun'.*modified_euler"),
        ({"num_states": 0}, "num_states=0"),
        ({"num_states": "all"}, "num_states='all'"),
        ({"num_states": "accepted", "forward": "rk4"}, '"accepted" needs an adaptive.*rk4'),
        ({"rtol": -1e-3}, r"rtol=-0\.001"),
        ({"rtol": math.inf}, "rtol=inf"),
        ({"atol": "small"}, "atol='small'"),
        ({"prox": -1.0}, r"prox=-1\.0"),
        ({"prox": math.nan}, "prox=nan"),
        ({"stopping": "query-loss"}, "stopping='query-loss'"),
    ],
)
def test_bad_options_are_refused_by_name(options, named):
    with pytest.raises(am.InputError, match=named):
        am.create_method("amaml", inner_steps=2, inner_lr=0.1, **options)


@pytest.mark.parametrize("budget", [1, 2])
def test_where_the_gradients_allowed_do_not_suffice_rk4_goes_the_way(budget):
    case, common = (
        oracles.regression(),
        {"inner_steps": 5, "inner_lr": 0.05, "backward": "rk4", "estimate_error": False},
    )
    short = am.create_method("amaml", forward="rk43", num_states="accepted", max_evals=budget, **common)
    found = short.meta_gradient(case.problem, case.theta, case.tasks)
    equal = am.create_method("amaml", forward="rk4", **common).meta_gradient(case.problem, case.theta, case.tasks)
    assert torch.equal(found.task_grads, equal.task_grads)
    assert found.stats["grad_evals"] == equal.stats["grad_evals"] + budget
    assert set(found.status) == {"not_converged"}
    assert f"more than {budget} gradients" in found.status[0].remedy
