"""MAML: reverse-mode autodiff through every inner step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from amaml_core.inner import InnerProblem
from amaml_core.methods.base import MetaGradientMethod, Outcome, Target, unrolled


@dataclass(frozen=True, kw_only=True)
class MAML(MetaGradientMethod):
    """d/dθ L_val(u_K) with u_{k+1} = u_k − α ∇L_tr(u_k), u_0 = θ (Finn et al. 2017, eq. 1).

    The graph of all K steps is kept: memory grows linearly in K. ``inner_steps=1`` is the papers' MAML-1. Where the
    compiled engine writes block kernels (CUDA), the K states are kept and each step is computed again on the way back.
    """

    name = "maml"

    @property
    def target(self) -> Target:
        """Always "unrolled"."""
        return "unrolled"

    @property
    def captures_whole(self) -> bool:
        """Always."""
        return True

    def _differentiate(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        u, pull = unrolled(inner, inner.start(), (horizon / self.inner_steps).unsqueeze(-1), self.inner_steps)
        loss, adjoint = inner.query_gradient(u)
        inner.stats.update(forward_steps=self.inner_steps, states_stored=self.inner_steps)
        return Outcome(u, horizon, loss, pull(adjoint))
