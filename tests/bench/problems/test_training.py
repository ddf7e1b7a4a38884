import pytest
import torch

import amaml_core as am
from bench.problems import make_problem


@pytest.mark.parametrize("name", ["cosmixture_training", "alpine_training"])
def test_regression_tasks_are_a_pool_and_others_for_the_test(name):
    problem = make_problem(name, {"shots": 4, "queries": 5, "train_tasks": 7, "test_tasks": 6, "test_queries": 9})
    arena, again, other = problem.arena(1), problem.arena(1), problem.arena(2)
    pool = {tuple(row.flatten().tolist()) for g in range(40) for row in arena.batch(g).support_x}
    assert len(pool) == 7  # the same points each time
    assert arena.test.query_x.shape == (6, 9, 2)
    assert not pool & {tuple(row.flatten().tolist()) for row in arena.test.support_x}
    assert torch.equal(arena.test.query_y, again.test.query_y)
    assert torch.equal(arena.batch(3).query_y, again.batch(3).query_y)
    assert not torch.equal(arena.theta, other.theta)
    assert not torch.equal(arena.test.query_y, other.test.query_y)


def test_standardising_is_undone_by_the_unit():
    raw = make_problem("alpine_training", {"shots": 4}).arena(1, torch.float64)
    scaled = make_problem("alpine_training", {"shots": 4, "standardise": True}).arena(1, torch.float64)
    torch.testing.assert_close(scaled.unit * am.target_std(scaled.test.query_y), am.target_std(raw.test.query_y))
    seen = torch.cat([torch.cat([scaled.batch(g).support_y, scaled.batch(g).query_y], 1) for g in range(300)])
    assert abs(float(seen.mean())) < 0.02
    assert abs(float(seen.std()) - 1) < 0.02


def test_half_the_loss_is_half_the_gradient():
    whole, half = (make_problem("cosmixture_training", {"half": flag}).instance(1, 0) for flag in (False, True))
    gradients = [am.InnerProblem(*made).gradient(made[1].expand(5, -1)) for made in (whole, half)]
    torch.testing.assert_close(gradients[0], 2 * gradients[1])


@pytest.mark.parametrize(
    ("name", "options", "culprit"),
    [
        ("cosmixture_training", {"normaliser": "range"}, "task-std"),
        ("cosmixture_training", {"normaliser": "best"}, "best"),
        ("cosmixture_training", {"tasks": 9, "train_tasks": 8}, "tasks=9"),
        ("cosmixture_training", {"outer_lr": 0.0}, "outer_lr"),
        ("jester", {"outer_updates": 0}, "outer_updates"),
        ("jester", {"min_ratings": 0}, "min_ratings"),
    ],
)
def test_bad_options_are_refused_by_name(name, options, culprit):
    with pytest.raises(am.InputError, match=culprit):
        make_problem(name, options)


def test_a_guess_takes_no_other_options():
    problem = make_problem("jester", {})
    assert problem.resolve_method("item-mean", {"inner_steps": 50, "inner_lr": 0.01})[1] == "guess"
    with pytest.raises(am.InputError, match="item-mean"):
        problem.resolve_method("item-mean", {"inner_steps": 50, "inner_lr": 0.01, "lam": 1.0})
    with pytest.raises(am.InputError, match="item-mean"):
        make_problem("cosmixture_training", {}).resolve_method("item-mean", {"inner_steps": 50, "inner_lr": 0.01})
