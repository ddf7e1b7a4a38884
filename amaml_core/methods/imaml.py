"""iMAML: the implicit gradient at the optimum of a proximally regularised inner problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from amaml_core.errors import InputError, positive_integer, positive_number
from amaml_core.inner import InnerProblem
from amaml_core.linear_solve import LinearSolution, conjugate_gradient
from amaml_core.methods.base import Doubt, MetaGradientMethod, Outcome, Target, gradient_descent

Variant = Literal["paper-gd", "paper-hf", "official"]

# the constants of the code that the authors of iMAML published
OFFICIAL_DAMPING = 1.0
OFFICIAL_LAM_DAMPING = 10.0
# ‖∇L_tr + λ(u−θ)‖ / ‖λ(u−θ)‖, two terms that cancel at the optimum, below which u counts as there. Where λ outweighs
# the curvature it is the share that a Newton step would add to u−θ, elsewhere more: an error of the gradient's size
STATIONARY = 0.05


@dataclass(frozen=True, kw_only=True)
class IMAML(MetaGradientMethod):
    """x with (I + ∇²L_tr(u)/λ) x = ∇L_val(u) at u = argmin L_tr + λ/2‖u−θ‖² (Rajeswaran et al. 2019, eq. 6).

    Attributes:
        variant: how u is found: "paper-gd" by K gradient steps on the regularised loss; "paper-hf" by Newton-CG with
            Armijo backtracking, where ``inner_steps`` and ``inner_lr`` mean nothing; "official" as the published
            code does: K steps on the plain loss, one step u ← u − αλ(u−θ), and the damped system
            (2I + ∇²L_tr/(λ+10)) x = ∇L_val.
        lam: λ.
        cg_steps: conjugate-gradient iterations, for the meta-gradient and for a Newton direction.
        newton_steps: Newton iterations of "paper-hf".
        cg_tol: relative residual below which the meta-gradient's system counts as solved.
        inner_tol: Newton stops at ‖∇‖ ≤ inner_tol · (1 + ‖∇ at θ‖) of the regularised loss, once that is small beside
            λ‖u−θ‖ too. What is not within ``STATIONARY`` of that is "not_converged".
    """

    variant: Variant = "paper-gd"
    lam: float = 1.0
    cg_steps: int = 5
    newton_steps: int = 10
    cg_tol: float = 1e-3
    inner_tol: float = 1e-3

    name = "imaml"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in get_args(Variant):
            raise InputError(f"variant={self.variant!r} is unknown; choose one of {', '.join(get_args(Variant))}.")
        positive_integer("cg_steps", self.cg_steps)
        positive_integer("newton_steps", self.newton_steps)
        for name in ("lam", "cg_tol", "inner_tol"):
            positive_number(name, getattr(self, name))

    @property
    def target(self) -> Target:
        """Stationary; the official variant, which solves another system at another point, is a surrogate."""
        return "surrogate" if self.variant == "official" else "stationary"

    @property
    def inner_prox(self) -> float:
        """λ where the regularised loss is what is minimised."""
        return 0.0 if self.variant == "official" else self.lam

    def _adapt(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        if self.variant == "paper-hf":
            if inner.tasks.horizon is not None:
                raise InputError("imaml paper-hf trains to the optimum and has no horizon; drop TaskBatch.horizon.")
            u = newton_cg(inner, steps=self.newton_steps, cg_steps=self.cg_steps, tol=self.inner_tol)
            return Outcome(u, horizon)
        u = gradient_descent(inner, horizon, self.inner_steps)
        if self.variant == "official":
            u = u - (horizon / self.inner_steps).unsqueeze(-1) * self.lam * (u - inner.theta)
        return Outcome(u, horizon)

    def _differentiate(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        if inner.manners[0].detached:
            raise InputError(
                "imaml needs a symmetric Hessian, and something in the loss is detached; use maml or amaml."
            )
        u = self._adapt(inner, horizon).u
        loss, right_side = inner.query_gradient(u)
        point = inner.linearize(u)
        matvec: Callable[[Tensor], Tensor]
        if self.variant == "official":
            matvec = lambda v: (1 + OFFICIAL_DAMPING) * v + point.hvp(v) / (self.lam + OFFICIAL_LAM_DAMPING)  # noqa: E731
        else:
            matvec = lambda v: point.hvp(v) / self.lam  # noqa: E731  # hvp holds λI already: I + H/λ
        early = not inner.captured  # a graph has the products of all iterations anyway
        solution = conjugate_gradient(matvec, right_side, steps=self.cg_steps, tol=self.cg_tol, early=early)
        return Outcome(u, horizon, loss, solution.x, doubts=self._doubts(inner, u, point.gradient, solution))

    @property
    def captures_whole(self) -> bool:
        """Unless Newton's steps look at what they find."""
        return self.variant != "paper-hf"

    def _doubts(self, inner: InnerProblem, u: Tensor, gradient: Tensor, solution: LinearSolution) -> tuple[Doubt, ...]:
        unsolved = solution.residual > self.cg_tol
        moving, left = torch.zeros_like(unsolved), None
        if self.target == "stationary":
            size, held = gradient.norm(dim=-1), self.lam * (u - inner.theta).norm(dim=-1)
            moving, left = size > STATIONARY * held, size / held
        more = "raise newton_steps" if self.variant == "paper-hf" else "raise inner_steps"
        if self.variant == "paper-gd" and self.inner_lr * self.lam >= 2:
            more = f"lower inner_lr below 2/lam = {2 / self.lam:g}: from there on its steps overshoot"
        return (
            Doubt(solution.negative_curvature, "not_converged", "CG met negative curvature; raise lam."),
            Doubt(
                moving,
                "not_converged",
                "The inner problem is short of its optimum (‖∇L + λ(u−θ)‖ is {:.0%} of λ‖u−θ‖); " + f"{more}.",
                left,
            ),
            Doubt(
                unsolved,
                "not_converged",
                "CG stopped at relative residual {:.1e}; raise cg_steps.",
                solution.residual,
            ),
        )


def newton_cg(inner: InnerProblem, *, steps: int, cg_steps: int, tol: float) -> Tensor:
    """Minimise the inner objective from θ by truncated Newton steps with Armijo backtracking, task by task.

    A task is done when ‖∇‖ ≤ tol · (1 + ‖∇ at θ‖), and ≤ ``STATIONARY`` μ‖u−θ‖ where there is a μ. Negative curvature
    cuts the direction short (Nocedal and Wright 2006, alg. 7.1), so that it stays one of descent.

    Returns:
        u, ``[B, d]``.
    """
    u, first = inner.start(), None
    for _ in range(steps):
        point = inner.linearize(u)
        size = point.gradient.norm(dim=-1)
        first = size if first is None else first
        active = size > tol * (1 + first)
        if inner.prox:
            active |= size > STATIONARY * inner.prox * (u - inner.theta).norm(dim=-1)
        if not bool(active.any()):
            break
        direction = conjugate_gradient(point.hvp, -point.gradient, steps=cg_steps).x
        slope = (direction * point.gradient).sum(-1)
        with torch.no_grad():
            loss = inner.loss(u)
            step = active.to(u.dtype)
            for _ in range(30):  # 30 halvings leave 1e-9: a task that finds no descent stays where it is
                trial = u + step.unsqueeze(-1) * direction
                too_long = ~(inner.loss(trial) <= loss + 1e-4 * step * slope)
                if not bool(too_long.any()):
                    break
                step = torch.where(too_long, 0.5 * step, step)
            u = u + step.unsqueeze(-1) * direction
        inner.stats["forward_steps"] += 1
    return u
