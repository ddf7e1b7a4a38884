"""Whether the references of a flow are what becomes of a flow that is plainly solved from two starts."""

from __future__ import annotations

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Generator, Tensor, nn

import amaml_core as am
from bench.probes import oracles
from bench.probes.base import Measurement
from bench.problems.base import MetaBenchProblem
from bench.records import Cell

RTOL = 1e-11
AWAY = 1e-4  # of θ's length, to either side; the error of the difference is of its square


def measure(problem: MetaBenchProblem, cell: Cell) -> Measurement:
    """|⟨reference, v⟩ − a central difference along v| / ‖reference‖, a sample each, and the largest.

    v is as much along the reference as across it. The difference is of query losses of the module itself, called as
    anybody would, on flows by DOP853: no adjoint, no second derivative, nothing of ``amaml_core`` but the order of θ.

    Raises:
        InputError: the inner loss has a proximal term.
    """
    if cell.options.get("prox"):
        raise am.InputError("The probe references solves plain flows; use prox=0.")
    result, off = Measurement(), []
    horizon = cell.options["inner_steps"] * cell.options["inner_lr"]
    for sample in range(problem.samples):
        reference = oracles.references(problem, cell, sample).get("flow")
        if reference is None:
            continue
        instance = problem.instance(cell.seed, sample)
        theta = instance[1]
        across = torch.randn(theta.shape, generator=Generator().manual_seed(sample), dtype=torch.float64)
        direction = reference / reference.norm() + across / across.norm()
        direction = AWAY * theta.norm() * direction / direction.norm()
        ahead, behind = (_query_loss(instance, theta + sign * direction, horizon) for sign in (1, -1))
        expected = 2 * float(direction @ reference)
        off.append(abs(ahead - behind - expected) / (2 * float(direction.norm() * reference.norm())))
    result.samples = {"reference_mismatch": off}
    result.metrics = {"draws": len(off)} | ({"reference_mismatch": max(off)} if off else {})
    return result


def _query_loss(instance: tuple[am.MetaProblem, Tensor, am.TaskBatch], theta: Tensor, horizon: float) -> float:
    """The mean over tasks of the query loss at the end of the flow from θ."""
    problem, _, tasks = instance
    model, parameters = problem.model, list(problem.model.parameters())
    losses = []
    for task in tasks.chunks(1):
        support, query = ((x[0], y[0]) for x, y in ((task.support_x, task.support_y), (task.query_x, task.query_y)))

        def velocity(_: float, u: np.ndarray, support=support) -> np.ndarray:
            nn.utils.vector_to_parameters(torch.from_numpy(u.copy()), parameters)
            loss = problem.inner_loss(model(support[0]), support[1])
            return -nn.utils.parameters_to_vector(torch.autograd.grad(loss, parameters)).numpy()

        path = solve_ivp(velocity, (0.0, horizon), theta.numpy(), method="DOP853", rtol=RTOL, atol=RTOL / 100)
        if not path.success:
            raise RuntimeError(f"The plain flow failed: {path.message}")
        nn.utils.vector_to_parameters(torch.from_numpy(path.y[:, -1].copy()), parameters)
        with torch.no_grad():
            losses.append(float(problem.outer_loss(model(query[0]), query[1])))
    return sum(losses) / len(losses)
