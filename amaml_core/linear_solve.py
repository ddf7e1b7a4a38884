"""Matrix-free solves of A x = b for a batch of symmetric matrices: callables (matvec, b) -> x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class LinearSolution:
    """What a linear solver reached.

    Attributes:
        x: ``[B, d]``.
        residual: ‖b − A x‖ / ‖b‖ by the solver's own recursion, ``[B]``.
        negative_curvature: ``[B]``, tasks stopped because pᵀA p ≤ 0 was met: A is not positive definite.
    """

    x: Float[Tensor, "tasks params"]
    residual: Float[Tensor, " tasks"]
    negative_curvature: Bool[Tensor, " tasks"]


def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor],
    b: Float[Tensor, "tasks params"],
    *,
    steps: int,
    tol: float = 0.0,
    early: bool = True,
) -> LinearSolution:
    """At most ``steps`` iterations from x = 0, each task by itself (Hestenes and Stiefel 1952).

    A task stops at a relative residual of ``tol``, and at negative curvature with what it has: after no iteration
    at all that is b itself, the direction of steepest descent.

    Args:
        matvec: v ``[B, d]`` -> A v ``[B, d]``.
        b: ``[B, d]``.
        steps: the largest number of products.
        tol: relative residual.
        early: end when all tasks have stopped, which the host must find out; the results are the same without.
    """
    residual, direction = b, b
    squared = b.square().sum(-1)
    x = torch.zeros_like(b).masked_fill(~torch.isfinite(squared).unsqueeze(-1), torch.nan)  # NaN in, NaN out
    size = squared.clamp_min(torch.finfo(b.dtype).tiny)
    negative = torch.zeros_like(squared, dtype=torch.bool)
    for iteration in range(steps):
        active = (squared > tol**2 * size) & (squared > 0) & ~negative
        if early and not bool(active.any()):
            break
        image = matvec(direction)
        curvature = (direction * image).sum(-1)
        newly_negative = active & (curvature <= 0)
        if iteration == 0:
            x = torch.where(newly_negative.unsqueeze(-1), b, x)
        negative |= newly_negative
        active &= ~newly_negative
        step = torch.where(active, squared / torch.where(active, curvature, 1.0), 0.0).unsqueeze(-1)
        x = x + step * direction
        residual = residual - step * image
        previous, squared = squared, residual.square().sum(-1)
        momentum = torch.where(active, squared / torch.where(active, previous, 1.0), 0.0).unsqueeze(-1)
        direction = residual + momentum * direction
    return LinearSolution(x, (squared / size).sqrt(), negative)
