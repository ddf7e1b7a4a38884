"""MAML with rematerialisation: the same gradient, the graph of a few steps at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amaml_core.errors import positive_integer
from amaml_core.methods.base import MetaGradientMethod, Outcome, Target
from amaml_core.problem import InnerProblem


@dataclass(frozen=True, kw_only=True)
class RematMAML(MetaGradientMethod):
    """The gradient of ``maml``, each segment of steps recomputed on the way back (Griewank 1992; Chen et al. 2016).

    Attributes:
        segment: steps that are recomputed together: 1 keeps every state and the graph of one step; "sqrt" takes
            √K, which keeps √K states and the graph of √K steps.
    """

    segment: int | Literal["sqrt"] = 1

    name = "remat-maml"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segment != "sqrt":
            positive_integer("segment", self.segment)

    @property
    def target(self) -> Target:
        """Always "unrolled"."""
        return "unrolled"

    def _differentiate(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        length = max(1, math.isqrt(self.inner_steps)) if self.segment == "sqrt" else self.segment
        step = (horizon / self.inner_steps).unsqueeze(-1)
        starts = range(0, self.inner_steps, length)
        u = inner.start()
        saved = u.new_empty((len(starts), *u.shape))
        for k in range(self.inner_steps):
            if k % length == 0:
                saved[k // length] = u
            u = u - step * inner.gradient(u)
        loss, adjoint = inner.query_gradient(u)
        for index in reversed(range(len(starts))):
            count = min(length, self.inner_steps - starts[index])
            with torch.enable_grad():
                first = last = saved[index].requires_grad_()
                for _ in range(count):
                    last = last - step * inner.gradient(last, create_graph=True)
                adjoint = torch.autograd.grad(last, first, adjoint)[0]
            inner.stats["hvp_evals"] += count
        inner.stats.update(forward_steps=self.inner_steps, states_stored=len(starts))
        return Outcome(u, horizon, loss, adjoint)
