from dataclasses import replace
from functools import partial

import oracles
import pytest
import torch
from oracles import Case
from trainings import SGD, go, maml, same

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


def test_it_starts_from_the_models_own_values(regression):
    method = maml()
    start = am.train(
        method, regression.problem, am.batches(regression.tasks, 2, 0), updates=1, snapshots=[0]
    ).snapshots[0]
    assert torch.equal(start["theta"], regression.problem.initial_parameters(seed=None))


def test_planned_updates_choose_the_engine(regression, monkeypatch):
    engines = []
    seen = am.MetaProblem.planning
    monkeypatch.setattr(am.MetaProblem, "planning", lambda self, n: engines.append(out := seen(self, n)) or out)
    monkeypatch.setattr(type(maml()), "meta_gradient", lambda *_: pytest.fail("planned"))
    auto = am.MetaProblem(regression.model, regression.problem.inner_loss, engine="auto")
    for updates in (10, 500):
        with pytest.raises(pytest.fail.Exception):
            go(replace(regression, problem=auto), updates=updates)
    assert [problem.engine for problem in engines] == ["eager", "compiled"]


@pytest.mark.parametrize("optimizer", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adagrad, torch.optim.Rprop])
def test_every_state_of_an_optimizer_comes_back_as_it_was(optimizer, regression, tmp_path):
    straight = go(regression, updates=9, optimizer=optimizer)
    go(regression, updates=5, optimizer=optimizer, directory=tmp_path)
    assert same(go(regression, updates=9, optimizer=optimizer, directory=tmp_path), straight)


def test_an_optimizer_that_asks_for_the_loss_is_refused(regression):
    with pytest.raises(am.InputError, match="LBFGS asks for the loss"):
        go(regression, optimizer=torch.optim.LBFGS)


def test_schedulers_clipping_and_rates_that_are_set_on_the_way_resume(regression, tmp_path):
    made = []

    def sgd(tensors):
        made.append(torch.optim.SGD(tensors, lr=0.5, momentum=0.9))
        return made[-1]

    def halve(update, loss):
        if update == 3:
            made[-1].param_groups[0]["momentum"] = 0.1

    options = {
        "optimizer": sgd,
        "scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5),
        "clip_norm": 0.1,
        "on_update": halve,
    }
    straight = go(regression, updates=8, snapshots=[0, 1], **options)
    moved = straight.snapshots[1]["theta"] - straight.snapshots[0]["theta"]
    assert float(moved.norm()) == pytest.approx(0.05, rel=1e-4)  # the rate times the norm that is left
    go(regression, updates=3, directory=tmp_path, every=1, **options)
    assert same(go(regression, updates=8, directory=tmp_path, every=1, **options), straight)


def test_validation_keeps_the_best_and_stops_early(regression, tmp_path):
    numbers = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    seen = []

    def validate(meta):
        seen.append(meta["theta"].clone())
        return next(numbers)

    out = go(regression, updates=12, validate=validate, validate_every=2, patience=2, directory=tmp_path, every=1)
    assert out.updates == 8
    assert out.validations == {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.0}
    assert torch.equal(out.best["theta"], seen[1])
    assert "brought nothing better after update 8" in out.notes[-1]
    again = go(regression, updates=12, validate=validate, validate_every=2, patience=2, directory=tmp_path)
    assert again.updates == 8
    assert torch.equal(again.best["theta"], seen[1])


def test_any_iterable_gives_batches_and_a_resumed_run_passes_over_those_used(regression, tmp_path):
    pool = am.batches(regression.tasks, 2, 0)
    stream = lambda count: (pool(update) for update in range(count))  # noqa: E731
    straight = go(regression, updates=7)
    assert same(go(regression, updates=7, batch=stream(7)), straight)
    go(regression, updates=4, batch=stream(7), directory=tmp_path)
    assert same(go(regression, updates=7, batch=stream(7), directory=tmp_path), straight)
    short = go(regression, updates=20, batch=stream(5))
    assert short.updates == 5
    assert "no batch after update 5" in short.notes[-1]


def test_a_validation_that_is_no_number_is_the_worst(regression):
    values = iter([float("nan"), 3.0, 2.0, 1.0])
    found = go(regression, 4, validate=lambda meta: next(values), validate_every=1, patience=2, snapshots=[4])
    assert found.updates == 4
    assert torch.equal(found.best["theta"], found.snapshots[4]["theta"])


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, "ReduceLROnPlateau.*another scheduler"),
        ({"optimizer": torch.optim.Adam([torch.zeros(1)])}, "optimizer is a Adam; pass what makes one"),
        ({"validate": lambda meta: None, "validate_every": 1}, "validate returned a NoneType"),
        ({"batch": None}, "batch is a NoneType"),
        ({"method": "maml"}, "not a str and a MetaProblem"),
    ],
)
def test_what_is_no_option_is_told(changes, culprit, regression):
    with pytest.raises(am.InputError, match=culprit):
        go(regression, 2, **changes)


def test_a_directory_may_be_a_string(regression, tmp_path):
    whole = go(regression, 4)
    go(regression, 2, directory=str(tmp_path))
    assert torch.equal(go(regression, 4, directory=str(tmp_path)).theta, whole.theta)
