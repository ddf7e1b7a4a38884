"""Float64 reference gradients, one for each target, computed once and kept in a cache on the disk.

They share no solver with ``amaml_core``: only the model's own gradients and Hessian-vector products, which its tests
check against finite differences.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import scipy
import torch
from filelock import FileLock
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

import amaml_core as am
from bench import cache, sources
from bench.problems.base import BenchProblem, MetaBenchProblem
from bench.records import Cell, canonical_json

Instance = tuple[am.MetaProblem, Tensor, am.TaskBatch]
PACKAGES = {module.__name__: module.__version__ for module in (np, scipy, torch)}  # whose solvers and derivatives


def flow(
    instance: Instance, *, horizon: float, prox: float, rtol: float = 1e-11, max_evaluations: int | None = None
) -> Tensor | None:
    """The gradient ``[d]`` of L_val(u(T)) along the exact flow: SciPy's DOP853 there and back at this tolerance.

    On the way back the state is read from the forward solve's dense output. Where so many evaluations of the inner loss
    do not suffice, or its steps become too small, there is none.

    Raises:
        RuntimeError: its steps became too small, and no bound was asked for.
    """
    problem, theta, tasks = instance
    if max_evaluations is None:
        return _flow(instance, horizon, prox, rtol)
    try:
        return _flow((_bounded(problem, max_evaluations), theta, tasks), horizon, prox, rtol)
    except (_TooManyEvaluationsError, _FlowFailedError):
        return None


class _TooManyEvaluationsError(Exception):
    pass


class _FlowFailedError(RuntimeError):
    pass


def _bounded(problem: am.MetaProblem, most: int) -> am.MetaProblem:
    """The same problem, whose inner loss can be evaluated only so often."""
    loss, left = problem.inner_loss, most

    def counted(prediction: Tensor, target: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise _TooManyEvaluationsError
        return loss(prediction, target)

    bounded = copy.copy(problem)
    bounded.inner_loss = counted
    return bounded


def _flow(instance: Instance, horizon: float, prox: float, rtol: float) -> Tensor:
    problem, theta, tasks = instance
    inner = am.InnerProblem(problem, theta, tasks, prox)
    shape, dtype = (len(tasks), problem.dim), theta.dtype
    tight = {"method": "DOP853", "rtol": rtol, "atol": rtol / 100}

    def back(t: float, packed: np.ndarray) -> np.ndarray:  # s = T − t
        adjoint, _ = _unpack(packed, (2, *shape), dtype)
        point = inner.linearize(_unpack(forward.sol(horizon - t), shape, dtype))
        return _pack(-point.hvp(adjoint), prox * adjoint)

    forward = solve_ivp(
        lambda t, u: _pack(-inner.gradient(_unpack(u, shape, dtype))),
        (0.0, horizon),
        _pack(inner.start()),
        dense_output=True,
        **tight,
    )
    _, terminal = inner.query_gradient(_unpack(forward.y[:, -1], shape, dtype))
    backward = solve_ivp(back, (0.0, horizon), _pack(terminal, torch.zeros_like(terminal)), **tight)
    if not (forward.success and backward.success):
        raise _FlowFailedError(f"The flow oracle failed: {forward.message} {backward.message}")
    adjoint, integral = _unpack(backward.y[:, -1], (2, *shape))
    return (adjoint + integral).mean(0)


def unrolled(instance: Instance, *, steps: int, lr: float, prox: float) -> Tensor:
    """The gradient ``[d]`` of L_val(u_K) through K steps of (proximal) gradient descent.

    By the explicit recursion λ_k = λ_{k+1} − α (∇²L_tr(u_k) + μI) λ_{k+1}, to which the start adds αμ Σ λ_{k+1}.
    """
    problem, theta, tasks = instance
    inner = am.InnerProblem(problem, theta, tasks, prox)
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
        inner = am.InnerProblem(problem, theta, task, lam)
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


ORACLES: dict[str, Callable[..., Tensor | None]] = {"flow": flow, "unrolled": unrolled, "stationary": stationary}


def references(problem: BenchProblem, cell: Cell, sample: int) -> dict[str, Tensor]:
    """The references ``[d]`` that apply to a cell, by target, at one of the problem's start values.

    Raises:
        InputError: the problem has no model.
    """
    if not isinstance(problem, MetaBenchProblem):
        raise am.InputError(
            f"Problem {cell.problem} has no model, which the probe {cell.probe} needs; use another, or the probe error."
        )
    about = asdict(problem) | {"problem": cell.problem, "seed": cell.seed, "sample": sample}
    dtype = problem.reference_dtype()
    if dtype != torch.float64:
        about["dtype"] = str(dtype)
    about.pop("samples")  # how many there are is no part of the question
    behind = {"version": _version(type(problem).__module__), "packages": PACKAGES}
    found = {}
    for target, settings in problem.reference_settings(cell.options).items():
        key = {"target": target, "where": about, "settings": settings} | behind
        gradient = _cached(key, target, settings, lambda: problem.instance(cell.seed, sample, dtype))
        if gradient is not None:
            found[target] = gradient.double()
    return found


@functools.cache
def _version(module: str) -> str:
    """Of the code behind the references of a problem's module, as this process found it: it may change meanwhile."""
    return sources.digest(sources.closure([__name__, module], without=["bench.records", "bench.sources"]))


def _cached(key: dict[str, Any], target: str, settings: dict[str, Any], make: Callable[[], Instance]) -> Tensor | None:
    """The oracle of this target, from the cache if it is there, else computed and kept.

    Args:
        key: all that the gradient follows from.
        target: key of ``ORACLES``.
        settings: the oracle's own keywords.
        make: makes the instance when it is needed.
    """
    digest = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:32]
    folder = cache.folder("oracles")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest}.npy"
    with FileLock(folder / f"{digest}.lock"):  # two cells that want the same oracle compute it once
        try:
            kept = torch.from_numpy(np.load(path))
        except (OSError, ValueError):  # not there, or torn
            problem, theta, tasks = make()
            found = ORACLES[target]((problem.with_engine("eager"), theta, tasks), **settings)
            kept = torch.empty(0, dtype=torch.float64) if found is None else found
            partial = path.with_suffix(".part")
            with partial.open("wb") as file:
                np.save(file, kept.numpy())
            partial.replace(path)
    return kept if len(kept) else None


def _pack(*tensors: Tensor) -> np.ndarray:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double().numpy()


def _unpack(values: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(shape).to(dtype)
