"""MAML: reverse-mode autodiff through every inner step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amaml_core.methods.base import MetaGradientMethod, Outcome, Target
from amaml_core.problem import InnerProblem


@dataclass(frozen=True, kw_only=True)
class MAML(MetaGradientMethod):
    """d/dθ L_val(u_K) with u_{k+1} = u_k − α ∇L_tr(u_k), u_0 = θ (Finn et al. 2017, eq. 1).

    The graph of all K steps is kept: memory grows linearly in K. ``inner_steps=1`` is the papers' MAML-1.
    """

    name = "maml"

    @property
    def target(self) -> Target:
        """Always "unrolled"."""
        return "unrolled"

    def _differentiate(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        step = (horizon / self.inner_steps).unsqueeze(-1)
        with torch.enable_grad():
            start = u = inner.start().clone().requires_grad_()
            for _ in range(self.inner_steps):
                u = u - step * inner.gradient(u, create_graph=True)
            loss = inner.query_loss(u)
            grads = torch.autograd.grad(loss.sum(), start)[0]
        # the way back runs once through each step's gradient, which is one Hessian-vector product
        inner.stats.update(forward_steps=self.inner_steps, hvp_evals=self.inner_steps, states_stored=self.inner_steps)
        return Outcome(u.detach(), horizon, loss.detach(), grads)
