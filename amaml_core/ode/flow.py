"""The inner training as a system of ordinary differential equations (Li et al. 2023, eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from amaml_core.engine.rule import PER_GRAPH
from amaml_core.inner import InnerProblem
from amaml_core.ode.scheme import OneStep, SolverFailedError, System, Transposed


class BudgetSpentError(SolverFailedError):
    """A solve wanted more gradients than it may take."""


class GradientFlow(System):
    """du/dt = −∇L_tr(u) − μ(u−θ).

    Args:
        inner: L_tr, μ and θ.
        create_graph: whether f is differentiated later.
        budget: gradients that ``inner`` may count until a solve is stopped by a ``BudgetSpentError``.
    """

    def __init__(self, inner: InnerProblem, create_graph: bool = False, budget: float = math.inf) -> None:
        super().__init__(self._field, self._linearize)
        self.inner, self.create_graph, self.budget = inner, create_graph, budget

    def _spend(self) -> None:
        if self.inner.stats["grad_evals"] >= self.budget:
            raise BudgetSpentError(f"{self.inner.stats['grad_evals']} gradients did not suffice")

    def _field(self, t: Tensor, u: Tensor) -> Tensor:
        self._spend()
        return -self.inner.gradient(u, create_graph=self.create_graph)

    def _linearize(self, t: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        point = self.inner.linearize(u)
        return -point.gradient, lambda v: -point.hvp(v)

    def run(self, step: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """See ``System.run``; compiled in the compiled engine."""
        self._spend()
        return self.inner.run(_OfFlow(step), *tensors)

    @property
    def per_chain(self) -> int | None:
        """See ``System.per_chain``."""
        return PER_GRAPH if self.inner.captures else None

    def chain(self, steps: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """See ``System.chain``; one CUDA graph in the engines that capture."""
        self._spend()
        return self.inner.whole(_OfFlow(steps), steps, *tensors)

    def transposed(self, step: OneStep, u: Tensor, t: Tensor, h: Tensor, v: Tensor) -> Tensor:
        """See ``System.transposed``."""
        return self.inner.run(_OfFlow(Transposed(step), create_graph=True), u, t, h, v)[0]

    def per_call(self, cost: int) -> int | None:
        """See ``System.per_call``."""
        return self.inner.per_call(cost)


@dataclass(frozen=True)
class _OfFlow:
    """A step of the flow as a step of the inner problem, which is what engines compile."""

    step: Callable[..., tuple[Tensor, ...]]
    create_graph: bool = False

    def __call__(self, inner: InnerProblem, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.step(GradientFlow(inner, self.create_graph), *tensors)
