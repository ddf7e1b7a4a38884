"""The oracles against finite differences of what they claim to differentiate."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import root

from bench import oracles
from bench.problems import make_problem


@pytest.fixture(scope="module")
def instance():
    return make_problem("cosmixture", {"shots": 6, "queries": 5, "tasks": 2, "width": 4}).instance(0, 0)


def directional(instance, adapted, direction, eps=1e-5):
    """Central difference of the mean query loss along a direction of θ; ``adapted``: (inner, θ) -> u of one task."""
    problem, theta, tasks = instance

    def objective(point):
        losses = []
        for task in tasks.chunks(1):
            inner = problem.bind(point, task)
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


def test_the_cache_answers_with_what_it_was_given_and_mends_itself(instance, tmp_path, monkeypatch):
    monkeypatch.setenv("AMAML_BENCH_CACHE", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return instance

    ask = {"target": "unrolled", "where": {"seed": 0}, "settings": {"steps": 2, "lr": 0.1, "prox": 0.0}, "make": make}
    first = oracles.cached(**ask)
    assert torch.equal(oracles.cached(**ask), first)
    assert len(calls) == 1
    (path,) = (tmp_path / "oracles").glob("*.npy")
    path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(oracles.cached(**ask), first)
    oracles.cached(**ask | {"where": {"seed": 1}})
    assert len(calls) == 3
