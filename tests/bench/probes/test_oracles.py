"""The oracles against finite differences of what they claim to differentiate."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import root

import amaml_core as am
from bench.probes import oracles
from bench.problems import make_problem
from bench.problems.regression import CosMixture


@pytest.fixture(scope="module")
def instance():
    return make_problem("cosmixture", {"shots": 6, "queries": 5, "tasks": 2, "width": 4}).instance(0, 0)


def directional(instance, adapted, direction, eps=1e-5):
    """Central difference of the mean query loss along a direction of θ; ``adapted``: (inner, θ) -> u of one task."""
    problem, theta, tasks = instance

    def objective(point):
        losses = []
        for task in tasks.chunks(1):
            inner = am.InnerProblem(problem, point, task)
            losses.append(inner.query_loss(adapted(inner, point.numpy()).reshape(1, -1)))
        return float(torch.cat(losses).mean())

    return (objective(theta + eps * direction) - objective(theta - eps * direction)) / (2 * eps)


def gradient_of(inner):
    return lambda u: inner.gradient(torch.from_numpy(u.copy()).reshape(1, -1)).numpy().ravel()


@pytest.mark.parametrize("prox", [0.0, 0.7])
@pytest.mark.parametrize("target", ["flow", "unrolled"])
def test_trajectory_oracles_equal_finite_differences(instance, target, prox):
    def by_flow(inner, theta):
        g = gradient_of(inner)
        solved = solve_ivp(
            lambda t, u: -g(u) - prox * (u - theta), (0, 1), theta, rtol=1e-11, atol=1e-12, method="LSODA"
        )
        return torch.from_numpy(solved.y[:, -1].copy())

    def by_descent(inner, theta):
        u, g = theta.copy(), gradient_of(inner)
        for _ in range(10):
            u = u - 0.1 * (g(u) + prox * (u - theta))
        return torch.from_numpy(u)

    settings = {"horizon": 1.0} if target == "flow" else {"steps": 10, "lr": 0.1}
    grad = oracles.ORACLES[target](instance, prox=prox, **settings)
    direction = torch.from_numpy(np.random.default_rng(0).normal(size=len(grad)))
    difference = directional(instance, by_flow if target == "flow" else by_descent, direction)
    assert float(grad @ direction) == pytest.approx(difference, rel=1e-5)


def test_the_stationary_oracle_equals_finite_differences_through_the_minimum(instance):
    lam = 2.0

    def minimum(inner, theta):
        g = gradient_of(inner)
        found = root(lambda u: g(u) + lam * (u - theta), theta, tol=1e-13)
        assert found.success
        return torch.from_numpy(found.x)

    grad = oracles.stationary(instance, lam=lam)
    direction = torch.from_numpy(np.random.default_rng(0).normal(size=len(grad)))
    assert float(grad @ direction) == pytest.approx(directional(instance, minimum, direction, 1e-4), rel=1e-5)


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """An empty cache, and how often an instance was made to work out what it lacked."""
    monkeypatch.setenv("AMAML_BENCH_CACHE", str(tmp_path))
    calls, instance = [], CosMixture.instance

    def count(self, *arguments):
        calls.append(arguments)
        return instance(self, *arguments)

    monkeypatch.setattr(CosMixture, "instance", count)
    return calls


def test_the_cache_answers_with_what_it_was_given_and_mends_itself(make_cell, counted, tmp_path):
    problem, cell = make_problem("cosmixture", {"shots": 5, "width": 4}), make_cell()
    first = oracles.references(problem, cell, 0)
    assert set(first) == {"flow", "unrolled"}
    again = oracles.references(problem, cell, 0)
    assert all(torch.equal(again[target], first[target]) for target in first)
    assert len(counted) == 2
    for path in (tmp_path / "oracles").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:50])
    again = oracles.references(problem, cell, 0)
    assert all(torch.equal(again[target], first[target]) for target in first)
    assert len(counted) == 4
    oracles.references(problem, cell.model_copy(update={"seed": 1}), 0)
    assert len(counted) == 6


@pytest.mark.parametrize("package", ["numpy", "scipy", "torch"])
def test_a_reference_of_another_solver_is_not_taken(make_cell, counted, monkeypatch, package):
    problem, cell = make_problem("cosmixture", {"shots": 5, "width": 4}), make_cell()
    oracles.references(problem, cell, 0)
    monkeypatch.setitem(oracles.PACKAGES, package, "0.0")
    oracles.references(problem, cell, 0)
    assert len(counted) == 4


def test_a_reference_is_of_the_code_that_this_process_began_with(make_cell, counted, monkeypatch):
    """A source that changes meanwhile must not have the old code's gradient kept as the new one's."""
    problem, cell = make_problem("cosmixture", {"shots": 5, "width": 4, "samples": 2}), make_cell()
    oracles.references(problem, cell, 0)
    monkeypatch.setattr(oracles.sources, "digest", lambda files: "changed")
    oracles.references(problem, cell, 0)
    assert len(counted) == 2
    oracles._version.cache_clear()  # another process
    oracles.references(problem, cell, 0)
    assert len(counted) == 4
    oracles._version.cache_clear()


def test_a_flow_that_takes_too_many_evaluations_is_given_up(instance):
    settings = {"horizon": 1.0, "prox": 0.0}
    assert oracles.flow(instance, **settings, max_evaluations=5) is None
    bounded = oracles.flow(instance, **settings, max_evaluations=100_000)
    assert torch.equal(bounded, oracles.flow(instance, **settings))
