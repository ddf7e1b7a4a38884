"""Float64 reference gradients, one for each target.

They share no solver with ``amaml_core``: only the model's own gradients and Hessian-vector products, which its tests
check against finite differences.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from platformdirs import user_cache_path
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

import amaml_core as am
from bench.records import canonical_json
from bench.versions import source_hash

Instance = tuple[am.MetaProblem, Tensor, am.TaskBatch]

SOURCES = (
    "bench/oracles.py",
    "bench/problems",
    "amaml_core/engine.py",
    "amaml_core/inner.py",
    "amaml_core/problem.py",
    "amaml_core/tasks.py",
)


def flow(instance: Instance, *, horizon: float, prox: float, rtol: float = 1e-11) -> Tensor:
    """The gradient ``[d]`` of L_val(u(T)) along the exact flow: SciPy's DOP853 there and back at this tolerance.

    On the way back the state is read from the forward solve's dense output.
    """
    problem, theta, tasks = instance
    inner = problem.bind(theta, tasks, prox)
    shape = (len(tasks), problem.dim)
    tight = {"method": "DOP853", "rtol": rtol, "atol": rtol / 100}

    def back(t: float, packed: np.ndarray) -> np.ndarray:  # s = T − t
        adjoint, _ = _unpack(packed, (2, *shape))
        point = inner.linearize(_unpack(forward.sol(horizon - t), shape))
        return _pack(-point.hvp(adjoint), prox * adjoint)

    forward = solve_ivp(
        lambda t, u: _pack(-inner.gradient(_unpack(u, shape))),
        (0.0, horizon),
        _pack(inner.start()),
        dense_output=True,
        **tight,
    )
    _, terminal = inner.query_gradient(_unpack(forward.y[:, -1], shape))
    backward = solve_ivp(back, (0.0, horizon), _pack(terminal, torch.zeros_like(terminal)), **tight)
    if not (forward.success and backward.success):
        raise RuntimeError(f"The flow oracle failed: {forward.message} {backward.message}")
    adjoint, integral = _unpack(backward.y[:, -1], (2, *shape))
    return (adjoint + integral).mean(0)


def unrolled(instance: Instance, *, steps: int, lr: float, prox: float) -> Tensor:
    """The gradient ``[d]`` of L_val(u_K) through K steps of (proximal) gradient descent.

    By the explicit recursion λ_k = λ_{k+1} − α (∇²L_tr(u_k) + μI) λ_{k+1}, to which the start adds αμ Σ λ_{k+1}.
    """
    problem, theta, tasks = instance
    inner = problem.bind(theta, tasks, prox)
    states = [inner.start()]
    for _ in range(steps):
        states.append(states[-1] - lr * inner.gradient(states[-1]))
    _, adjoint = inner.query_gradient(states.pop())
    pull = torch.zeros_like(adjoint)
    for state in reversed(states):
        pull += lr * prox * adjoint
        adjoint = adjoint - lr * inner.linearize(state).hvp(adjoint)
    return (adjoint + pull).mean(0)


def stationary(instance: Instance, *, lam: float) -> Tensor:
    """The implicit gradient ``[d]`` at the minimum of L_tr + λ/2‖u−θ‖² in whose basin θ lies.

    The regularised flow leads into the basin, SciPy's trust-ncg to its bottom, SciPy's CG solves there.
    """
    problem, theta, tasks = instance
    grads = []
    for task in tasks.chunks(1):
        inner = problem.bind(theta, task, lam)
        row = (1, problem.dim)

        def gradient(u: np.ndarray, inner=inner, row=row) -> np.ndarray:
            return _pack(inner.gradient(_unpack(u, row)))

        def product(u: np.ndarray, v: np.ndarray, inner=inner, row=row) -> np.ndarray:
            return _pack(inner.linearize(_unpack(u, row)).hvp(_unpack(v, row)))

        near = solve_ivp(lambda t, u, g=gradient: -g(u), (0.0, 20 / lam), theta.numpy(), method="DOP853", rtol=1e-6)
        best = minimize(
            lambda u, inner=inner, row=row: float(inner.loss(_unpack(u, row)).detach()),
            near.y[:, -1],
            jac=gradient,
            hessp=product,
            method="trust-ncg",
            options={"gtol": 1e-9, "maxiter": 100},
        )
        point = inner.linearize(_unpack(best.x, row))
        if point.gradient.norm() > 1e-7:
            raise RuntimeError(f"The stationary oracle stopped at a gradient of {float(point.gradient.norm()):.1e}.")
        _, right_side = inner.query_gradient(_unpack(best.x, row))
        size = (problem.dim, problem.dim)
        matrix = LinearOperator(size, matvec=lambda v, p=point, r=row: _pack(p.hvp(_unpack(v, r))))  # pyright: ignore
        solution, flag = cg(matrix, lam * _pack(right_side), rtol=1e-12, maxiter=10 * problem.dim)
        if flag:
            raise RuntimeError("The stationary oracle's linear system did not converge; raise lam.")
        grads.append(torch.from_numpy(solution))
    return torch.stack(grads).mean(0)


ORACLES: dict[str, Callable[..., Tensor]] = {"flow": flow, "unrolled": unrolled, "stationary": stationary}


def cached(target: str, where: dict[str, Any], settings: dict[str, Any], make: Callable[[], Instance]) -> Tensor:
    """The oracle of this target, from the cache if it is there, else computed and kept.

    Args:
        target: key of ``ORACLES``.
        where: what the instance follows from: problem, options, seed, sample.
        settings: the oracle's own keywords.
        make: makes the instance when it is needed.
    """
    name = {"target": target, "where": where, "settings": settings, "version": source_hash(*SOURCES)}
    digest = hashlib.sha256(canonical_json(name).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("AMAML_BENCH_CACHE") or user_cache_path("amaml-bench")) / "oracles"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.npy"
    with FileLock(folder / f"{digest}.lock"):  # two cells that want the same oracle compute it once
        try:
            return torch.from_numpy(np.load(path))
        except (OSError, ValueError):  # not there, or torn
            problem, theta, tasks = make()
            gradient = ORACLES[target]((problem.with_engine("eager"), theta, tasks), **settings)
            partial = path.with_suffix(".part")
            with partial.open("wb") as file:
                np.save(file, gradient.numpy())
            partial.replace(path)
            return gradient


def _pack(*tensors: Tensor) -> np.ndarray:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).numpy()


def _unpack(values: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape)
