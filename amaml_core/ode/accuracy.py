"""What tells of a flow's gradient whether it is right: its defect, and other resolutions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SUSPICIOUS = 0.05  # a defect above which the error is estimated unasked
INACCURATE = 0.1  # an error above which a gradient is not "ok"
FINER = 1.3  # growth of the number of steps below which two resolutions tell nothing


class Defect(NamedTuple):
    """How far ⟨λ(0), f(θ)⟩ and dJ/dT are apart, which along an autonomous flow are one number; ``[B]`` each.

    Attributes:
        share: of the larger of the two; NaN where rounding hides the whole move, for where f(θ) = 0 it sees nothing.
        size: the distance itself. An error of the solve makes that smaller with the steps, a kink does not; a share is
            1 for as long as the two have nothing in common.
    """

    share: Float[Tensor, " tasks"]
    size: Float[Tensor, " tasks"]


def defect(
    adjoint: Float[Tensor, "tasks params"],
    slope: Float[Tensor, "tasks params"],
    horizon_grad: Float[Tensor, " tasks"],
    start: Float[Tensor, "tasks params"],
    horizon: Float[Tensor, " tasks"],
) -> Defect:
    """|⟨λ(0), f(θ)⟩ − dJ/dT| of a solve.

    d/dt ⟨λ, f⟩ = −⟨Jᵀλ, f⟩ + ⟨λ, J f⟩ = 0, and at T it is dJ/dT. No scheme keeps that but by its accuracy. Errors
    across f(θ) it does not see, and where a solve itself is differentiated, little but those of u.

    Args:
        adjoint: λ(0).
        slope: f(θ).
        horizon_grad: dJ/dT = ⟨λ(T), f(u(T))⟩.
        start: θ.
        horizon: T.
    """
    product = (adjoint * slope).sum(-1)
    eps = torch.finfo(slope.dtype).eps
    hidden = horizon * slope.norm(dim=-1) <= math.sqrt(eps) * start.norm(dim=-1)
    # of two products of rounding's own size the share means nothing
    floor = eps**0.75 * adjoint.norm(dim=-1) * slope.norm(dim=-1)
    size = (product - horizon_grad).abs()
    share = size / (torch.maximum(product.abs(), horizon_grad.abs()) + floor)
    return Defect(torch.where(hidden, torch.nan, share), size)


def distance(found: Tensor, other: Tensor, unit: Tensor) -> Tensor:
    """‖found − other‖ / ‖unit‖ along the last axis; infinite where that is no number, zero where both are the same."""
    gap = (found - other).norm(dim=-1)
    share = torch.where(gap == 0, 0.0, gap / unit.norm(dim=-1))
    return torch.nan_to_num(share, nan=math.inf, posinf=math.inf)


def richardson(order: int) -> float:
    """The share of the distance to half the resolution that is taken for the error.

    1/(2^order − 1) where the steps are small; no more is believed than a half.
    """
    return max(0.5, 1 / (2**order - 1))
