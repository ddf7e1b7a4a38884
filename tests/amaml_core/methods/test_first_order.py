import oracles
import pytest

import amaml_core as am


def run(name, case, **options):
    return am.create_method(name, **{"inner_steps": 6, "inner_lr": 0.05, **options}).meta_gradient(
        case.problem, case.theta, case.tasks
    )


@pytest.mark.parametrize("steps", [1, 6])
def test_fomaml_is_the_query_gradient_after_descent(case, steps):
    expected = case.per_task(lambda s, q: oracles.gradient(q, oracles.descend(s, case.theta, steps, 0.05)))
    assert oracles.relative(run("fomaml", case, inner_steps=steps).task_grads, expected) < 1e-12


@pytest.mark.parametrize("steps", [1, 6])
def test_reptile_is_the_way_back(case, steps):
    expected = case.per_task(lambda s, q: case.theta - oracles.descend(s, case.theta, steps, 0.05))
    assert oracles.relative(run("reptile", case, inner_steps=steps).task_grads, expected) < 1e-12


@pytest.mark.parametrize("name", ["fomaml", "reptile"])
def test_no_second_derivative_is_taken(case, name):
    found = run(name, case)
    assert (found.stats["grad_evals"], found.stats["hvp_evals"]) == (6, 0)
    assert found.horizon_grad is None


@pytest.mark.parametrize("name", ["fomaml", "reptile"])
def test_each_task_has_its_own_horizon(case, name):
    horizons = [0.1, 0.25, 0.4, 0.55][: len(case.tasks)]
    found = run(name, case.with_horizon(*horizons))
    for b, horizon in enumerate(horizons):
        u = oracles.descend(case.support(b), case.theta, 6, horizon / 6)
        assert oracles.relative(found.adapted[b], u) < 1e-12
        expected = oracles.gradient(case.query(b), u) if name == "fomaml" else case.theta - u
        assert oracles.relative(found.task_grads[b], expected) < 1e-12
