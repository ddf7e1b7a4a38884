"""MAML with rematerialisation: the same gradient, the graph of a few steps at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from amaml_core.engine.rule import pieces
from amaml_core.errors import positive_integer
from amaml_core.inner import InnerProblem
from amaml_core.methods.base import Descend, MetaGradientMethod, Outcome, Target, unrolled


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

    @property
    def captures_whole(self) -> bool:
        """Always."""
        return True

    def _differentiate(self, inner: InnerProblem, horizon: Tensor) -> Outcome:
        length = max(1, math.isqrt(self.inner_steps)) if self.segment == "sqrt" else self.segment
        lengths = [min(length, self.inner_steps - start) for start in range(0, self.inner_steps, length)]
        h = (horizon / self.inner_steps).unsqueeze(-1)
        u = inner.start()
        saved = u.new_empty((len(lengths), *u.shape))
        for index, count in enumerate(lengths):
            saved[index] = u
            for part in pieces(count, inner.per_call() or 1):
                (u,) = inner.run(Descend(part), u, h)
        loss, adjoint = inner.query_gradient(u)
        for index, count in reversed(list(enumerate(lengths))):
            adjoint = unrolled(inner, saved[index], h, count)[1](adjoint)
        inner.stats.update(forward_steps=self.inner_steps, states_stored=len(lengths))
        return Outcome(u, horizon, loss, adjoint)
