"""The inner training as a system of ordinary differential equations (Li et al. 2023, eq. 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from amaml_core.inner import InnerProblem
from amaml_core.ode.scheme import OneStep, System, Transposed


class GradientFlow(System):
    """du/dt = −∇L_tr(u) − μ(u−θ)."""

    def __init__(self, inner: InnerProblem, create_graph: bool = False) -> None:
        super().__init__(self._field, self._linearize)
        self.inner, self.create_graph = inner, create_graph

    def _field(self, t: Tensor, u: Tensor) -> Tensor:
        return -self.inner.gradient(u, create_graph=self.create_graph)

    def _linearize(self, t: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        point = self.inner.linearize(u)
        return -point.gradient, lambda v: -point.hvp(v)

    def run(self, step: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """See ``System.run``; compiled in the compiled engine."""
        return self.inner.run(_OfFlow(step), *tensors)

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
