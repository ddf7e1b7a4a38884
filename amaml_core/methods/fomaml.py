"""First-order MAML: the query gradient at the adapted parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from amaml_core.inner import InnerProblem
from amaml_core.methods.base import MetaGradientMethod, Outcome, Target


@dataclass(frozen=True, kw_only=True)
class FOMAML(MetaGradientMethod):
    """∇L_val(u_K), as if du_K/dθ were the identity (Finn et al. 2017, sec. 5.2; Li et al. 2023, sec. 2)."""

    name = "fomaml"

    @property
    def target(self) -> Target:
        """Always "surrogate"."""
        return "surrogate"

    @property
    def captures_whole(self) -> bool:
        """Always."""
        return True

    def _differentiate(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        u = self._adapt(inner, horizon).u
        loss, grads = inner.query_gradient(u)
        return Outcome(u, horizon, loss, grads)
