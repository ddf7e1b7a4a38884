from functools import partial

import oracles
import pytest
import torch
from oracles import Case
from trainings import SGD, go, same

import amaml_core as am


def adam_by_hand(case: Case, batch, updates: int, lr: float) -> torch.Tensor:
    """Kingma and Ba's algorithm 1 on the oracle's gradients."""
    theta, m, v = case.theta, 0.0, 0.0
    for g in range(updates):
        tasks = batch(g)
        now = Case(case.model, case.loss, case.problem, theta, tasks)
        grad = now.per_task(lambda s, q, at=theta: oracles.unrolled_gradient(s, q, at, 2, 0.05)).mean(0)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        theta = theta - lr * (m / (1 - 0.9 ** (g + 1))) / ((v / (1 - 0.999 ** (g + 1))).sqrt() + 1e-8)
    return theta


def test_it_is_adam_on_the_oracles_gradients(case):
    batch = am.batches(case.tasks, 2, seed=3)
    found = go(case, 5, batch=batch, optimizer=partial(torch.optim.Adam, lr=0.01))
    torch.testing.assert_close(found.theta, adam_by_hand(case, batch, 5, 0.01), rtol=1e-10, atol=1e-12)


def test_reptile_moves_theta_to_the_mean_of_the_adapted_parameters(regression):
    """With SGD of rate ε: θ + ε · mean(u_K − θ)."""
    reptile = am.create_method("reptile", inner_steps=3, inner_lr=0.05)
    found = go(regression, 1, 3, method=reptile, optimizer=partial(torch.optim.SGD, lr=0.5))
    adapted = regression.per_task(lambda s, q: oracles.descend(s, regression.theta, 3, 0.05)).mean(0)
    torch.testing.assert_close(found.theta, regression.theta + 0.5 * (adapted - regression.theta))


@pytest.mark.parametrize("name", am.METHODS)
def test_every_method_can_train_and_lowers_the_query_loss(name, regression):
    method = am.create_method(name, inner_steps=5, inner_lr=0.05)
    found = go(regression, 30, 3, method=method, optimizer=partial(torch.optim.Adam, lr=0.02))
    assert found.updates == 30
    assert found.status == "ok"
    assert float(found.losses[-1]) < float(found.losses[0])


def test_batches_are_a_pure_function_of_seed_and_update(regression):
    pool = am.TaskBatch(*(torch.arange(50.0).view(50, 1, 1) for _ in range(4)))
    drawn = [am.batches(pool, 5, seed)(g).support_x.flatten() for seed in (0, 1) for g in range(40)]
    assert all(len(set(batch.tolist())) == 5 for batch in drawn)
    assert len({tuple(batch.tolist()) for batch in drawn}) > 75  # seeds and updates do not share their tasks
    assert torch.equal(am.batches(pool, 5, 1)(39).support_x.flatten(), drawn[-1])


def test_batches_draw_all_tasks_alike():
    pool = am.TaskBatch(*(torch.arange(10.0).view(10, 1, 1) for _ in range(4)))
    batch = am.batches(pool, 2, seed=0)
    counts = torch.bincount(torch.cat([batch(g).support_x.flatten() for g in range(2000)]).long())
    assert float(((counts - 400) ** 2 / 400).sum()) < 27.9  # chi squared, 9 degrees of freedom, p = 0.001


def test_training_is_deterministic(case):
    assert same(go(case, 6), go(case, 6))
    assert not torch.equal(go(case, 6).theta, go(case, 6, seed=1).theta)


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, SGD, partial(torch.optim.SGD, lr=0.05, momentum=0.9)])
def test_a_resumed_run_ends_in_the_same_bits(stop, optimizer, regression, tmp_path):
    whole = go(regression, 12, optimizer=optimizer, snapshots=[0, 3, 12])
    go(regression, stop, optimizer=optimizer, snapshots=[0, 3, 12], directory=tmp_path, every=3)
    resumed = go(regression, 12, optimizer=optimizer, snapshots=[0, 3, 12], directory=tmp_path, every=3)
    assert same(whole, resumed)
    assert list(resumed.snapshots) == [0, 3, 12]
    assert all(torch.equal(whole.snapshots[g]["theta"], resumed.snapshots[g]["theta"]) for g in whole.snapshots)


def test_divergence_stops_it_with_the_last_good_theta(regression):
    good = go(regression, 4)

    def batch(update):
        tasks = am.batches(regression.tasks, 2, 0)(update)
        if update < 4:
            return tasks
        return am.TaskBatch(tasks.support_x, 1e200 * tasks.support_y, tasks.query_x, tasks.query_y)

    stopped = go(regression, 12, batch=batch)
    assert stopped.status == "diverged"
    assert "At update 4" in stopped.status.remedy
    assert stopped.updates == 4
    assert torch.equal(stopped.theta, good.theta)


def test_an_optimizer_that_leaves_the_finite_numbers_is_taken_back(regression):
    stopped = go(regression, 12, optimizer=partial(torch.optim.SGD, lr=1e308))
    assert (stopped.status, stopped.updates) == ("diverged", 0)
    assert "outer rate" in stopped.status.remedy
    assert torch.equal(stopped.theta, regression.theta)


def test_divergence_is_remembered_by_the_checkpoint(regression, tmp_path):
    hot = partial(torch.optim.SGD, lr=1e308)
    go(regression, 3, optimizer=hot, directory=tmp_path)
    assert go(regression, 5, optimizer=hot, directory=tmp_path).status == "diverged"


def test_a_change_below_xi_ends_it(regression):
    whole = go(regression, 12, optimizer=SGD, snapshots=range(13))
    path = torch.stack([whole.snapshots[g]["theta"] for g in range(13)])
    moves = path.diff(dim=0).norm(dim=1)
    xi = float(moves.sort().values[3])
    first = next(g for g, move in enumerate(moves.tolist(), start=1) if move < xi)
    ended = go(regression, 12, optimizer=SGD, xi=xi)
    assert ended.converged
    assert ended.updates == first
    assert torch.equal(ended.theta, path[first])


def test_it_tells_of_every_update(regression):
    told = []
    found = go(regression, 3, on_update=lambda made, loss: told.append((made, loss)))
    assert told == list(zip([1, 2, 3], found.losses.tolist(), strict=True))
    assert bool((found.seconds > 0).all())


def test_what_does_not_converge_is_counted(regression):
    method = am.create_method("imaml", inner_steps=1, inner_lr=0.01, cg_steps=1)
    assert go(regression, 4, 3, method=method).not_converged == 12


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"updates": 0}, "updates=0"),
        ({"every": 0}, "every=0"),
        ({"xi": -1.0}, "xi=-1.0"),
        ({"size": 9}, "9 tasks"),
    ],
)
def test_bad_options_are_refused_by_name(changes, culprit, regression):
    with pytest.raises(am.InputError, match=culprit):
        go(regression, **changes)
