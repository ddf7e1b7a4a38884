"""Early stopping of the inner training, task by task, at tracked points (Li et al. 2023, sec. 3.1).

A rule picks the index of the point that a task stops at; the meta-gradient holds that T_b fixed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from amaml_core.errors import positive_integer, positive_number
from amaml_core.inner import InnerProblem
from amaml_core.ode.scheme import Trajectory


class Stopping(ABC):
    """A rule for when to stop."""

    @abstractmethod
    def index(self, inner: InnerProblem, trajectory: Trajectory) -> Int[Tensor, " tasks"]:
        """For each task the tracked point to stop at, 1 … K (0 would be no training at all)."""


@dataclass(frozen=True)
class GradientNorm(Stopping):
    """Stop at the first tracked point where ‖∇L_tr(u) + μ(u−θ)‖₂ ≤ ``tol``; at T where there is none."""

    tol: float

    def __post_init__(self) -> None:
        positive_number("GradientNorm.tol", self.tol)

    def index(self, inner: InnerProblem, trajectory: Trajectory) -> Int[Tensor, " tasks"]:
        """See ``Stopping.index``."""
        last = len(trajectory.states) - 1
        chosen = torch.full((len(inner.tasks),), last, device=trajectory.times.device)
        for j in range(1, last):
            small = inner.gradient(trajectory.states[j]).norm(dim=-1) <= self.tol
            chosen = torch.where(small & (chosen == last), j, chosen)
            if bool((chosen < last).all()):
                break
        return chosen


@dataclass(frozen=True)
class QueryLoss(Stopping):
    """Stop at the lowest query loss before it failed to improve at ``patience`` tracked points in a row."""

    patience: int

    def __post_init__(self) -> None:
        positive_integer("QueryLoss.patience", self.patience)

    def index(self, inner: InnerProblem, trajectory: Trajectory) -> Int[Tensor, " tasks"]:
        """See ``Stopping.index``."""
        chosen = torch.ones(len(inner.tasks), dtype=torch.long, device=trajectory.times.device)
        with torch.no_grad():
            best = inner.query_loss(trajectory.states[1])
            for j in range(2, len(trajectory.states)):
                waiting = j - chosen <= self.patience
                if not bool(waiting.any()):
                    break
                loss = inner.query_loss(trajectory.states[j])
                better = waiting & (loss < best)
                chosen, best = torch.where(better, j, chosen), torch.where(better, loss, best)
        return chosen
