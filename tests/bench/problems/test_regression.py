import pytest
import torch

from bench.problems import make_problem


@pytest.mark.parametrize("name", ["alpine", "cosmixture"])
def test_regression_tasks_follow_from_the_seed_and_start_values_from_the_sample(name):
    problem = make_problem(name, {"shots": 7, "queries": 9, "tasks": 3})
    _, theta, tasks = problem.instance(seed=1, sample=0)
    _, again, same = problem.instance(seed=1, sample=0)
    _, other, shared = problem.instance(seed=1, sample=1)
    assert torch.equal(theta, again)
    assert torch.equal(tasks.support_y, same.support_y)
    assert torch.equal(tasks.support_y, shared.support_y)
    assert not torch.equal(theta, other)
    assert not torch.equal(tasks.support_y, problem.instance(seed=2, sample=0)[2].support_y)
    assert (tasks.support_x.shape, tasks.query_y.shape) == ((3, 7, 2), (3, 9, 1))


def test_all_dtypes_share_one_point():
    problem = make_problem("cosmixture", {"shots": 4})
    double, single = problem.instance(0, 0), problem.instance(0, 0, torch.float32)
    assert torch.equal(double[1].float(), single[1])
    assert torch.equal(double[2].query_x.float(), single[2].query_x)


def test_cosmixture_has_the_papers_size_and_range():
    problem, theta, tasks = make_problem("cosmixture", {}).instance(0, 0)
    assert len(theta) == problem.dim == 1185
    assert bool((tasks.support_x.abs() <= 1).all())
    rest = tasks.support_y + tasks.support_x.square().sum(-1, keepdim=True)
    assert float(rest.abs().max()) <= 0.2  # |0.1 Σ A cos| with A ≤ 1


def test_alpine_lies_on_its_square_and_is_not_negative():
    _, _, tasks = make_problem("alpine", {}).instance(0, 0)
    assert 9 < float(tasks.support_x.abs().max()) <= 10
    assert bool((tasks.support_y >= 0).all())
    assert float(tasks.support_y.max()) <= 2 * 11
