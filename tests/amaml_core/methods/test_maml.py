import oracles
import pytest
import torch

import amaml_core as am


@pytest.mark.parametrize("steps", [1, 6])
def test_maml_is_the_slope_of_its_own_objective(case, steps):
    found = am.create_method("maml", inner_steps=steps, inner_lr=0.05).meta_gradient(
        case.problem, case.theta, case.tasks
    )

    def slope(support, query):
        def objective(theta):
            return query(oracles.descend(support, theta, steps, 0.05))

        return oracles.differences(objective, case.theta, torch.eye(len(case.theta), dtype=torch.float64))

    assert oracles.relative(found.task_grads, case.per_task(slope)) < 1e-6


@pytest.mark.parametrize("steps", [1, 5])
def test_what_else_it_reports(case, steps):
    found = am.create_method("maml", inner_steps=steps, inner_lr=0.05).meta_gradient(
        case.problem, case.theta, case.tasks
    )
    adapted = case.per_task(lambda s, q: oracles.descend(s, case.theta, steps, 0.05))
    losses = case.per_task(lambda s, q: q(oracles.descend(s, case.theta, steps, 0.05)))
    assert torch.allclose(found.adapted, adapted, rtol=1e-12)
    assert torch.allclose(found.query_loss, losses, rtol=1e-12)
    assert torch.allclose(found.horizon, torch.full((len(case.tasks),), steps * 0.05, dtype=torch.float64))
    assert found.stats["grad_evals"] == found.stats["hvp_evals"] == found.stats["forward_steps"] == steps


def test_the_papers_network():
    case = oracles.regression(hidden=32, tasks=2, examples=20)
    found = am.create_method("maml", inner_steps=10, inner_lr=0.01).meta_gradient(case.problem, case.theta, case.tasks)
    assert case.problem.dim == 1185
    expected = case.per_task(lambda s, q: oracles.unrolled_gradient(s, q, case.theta, 10, 0.01))
    assert oracles.relative(found.task_grads, expected) < 1e-10


@pytest.mark.parametrize("segment", [1, 3, 7, 100, "sqrt"])
@pytest.mark.parametrize("steps", [1, 7, 9])
def test_rematerialisation_changes_nothing(case, segment, steps):
    options = {"inner_steps": steps, "inner_lr": 0.05}
    expected = am.create_method("maml", **options).meta_gradient(case.problem, case.theta, case.tasks)
    found = am.create_method("remat-maml", segment=segment, **options).meta_gradient(
        case.problem, case.theta, case.tasks
    )
    assert oracles.relative(found.task_grads, expected.task_grads) < 1e-12
    assert torch.allclose(found.query_loss, expected.query_loss, rtol=1e-13)


@pytest.mark.parametrize(("segment", "stored"), [(1, 10), (3, 4), ("sqrt", 4), (10, 1), (99, 1)])
def test_rematerialisation_keeps_a_state_a_segment(regression, segment, stored):
    method = am.create_method("remat-maml", inner_steps=10, inner_lr=0.05, segment=segment)
    stats = method.meta_gradient(regression.problem, regression.theta, regression.tasks).stats
    assert stats["states_stored"] == stored
    assert stats["hvp_evals"] == 10


@pytest.mark.parametrize("name", ["maml", "remat-maml"])
def test_each_task_has_its_own_horizon(case, name):
    horizons = [0.1, 0.25, 0.4, 0.55][: len(case.tasks)]
    case = case.with_horizon(*horizons)
    found = am.create_method(name, inner_steps=5, inner_lr=9.9).meta_gradient(case.problem, case.theta, case.tasks)
    for b, horizon in enumerate(horizons):
        expected = oracles.unrolled_gradient(case.support(b), case.query(b), case.theta, 5, horizon / 5)
        assert oracles.relative(found.task_grads[b], expected) < 1e-10
    assert found.horizon.tolist() == horizons


@pytest.mark.parametrize("segment", [0, -1, 1.5, "cbrt", None])
def test_a_bad_segment_is_refused(segment):
    with pytest.raises(am.InputError, match=f"segment={segment!r}"):
        am.create_method("remat-maml", inner_steps=2, inner_lr=0.1, segment=segment)


def test_what_is_no_problem_or_no_tensor_is_refused(regression):
    method = am.create_method("maml", inner_steps=2, inner_lr=0.05)
    for problem, theta in [(regression.model, regression.theta), (regression.problem, regression.theta.numpy())]:
        with pytest.raises(am.InputError, match="as a tensor"):
            method.meta_gradient(problem, theta, regression.tasks)
