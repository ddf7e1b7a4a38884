"""Reptile: the way that adaptation went, turned round."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from amaml_core.inner import InnerProblem
from amaml_core.methods.base import MetaGradientMethod, Outcome, Target


@dataclass(frozen=True, kw_only=True)
class Reptile(MetaGradientMethod):
    """θ − u_K in the gradient's place (Nichol et al. 2018, alg. 1; Li et al. 2023 misprint it).

    It needs no query set; its scale is that of a step, not of a gradient.
    """

    name = "reptile"

    @property
    def target(self) -> Target:
        """Always "surrogate"."""
        return "surrogate"

    @property
    def captures_whole(self) -> bool:
        """Always."""
        return True

    def _differentiate(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        done = self._adapt(inner, horizon)
        return replace(done, task_grads=inner.theta - done.u)
