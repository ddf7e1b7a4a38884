"""A method of one's own, as a plug-in: `amaml-bench run docs/plugin/averaged.toml`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import amaml_core as am


@dataclass(frozen=True, kw_only=True)
class AveragedFOMAML(am.MetaGradientMethod):
    """The query gradient at the mean of the first and the last parameters: half-way between θ and FOMAML's u_K."""

    name = "averaged-fomaml"

    @property
    def target(self) -> am.Target:
        """A stand-in for a gradient."""
        return "surrogate"

    def _differentiate(self, inner: am.InnerProblem, horizon: Tensor) -> am.Outcome:
        u = am.gradient_descent(inner, horizon, self.inner_steps)
        _, grads = inner.query_gradient((inner.start() + u) / 2)
        return am.Outcome(u, horizon, task_grads=grads)


am.METHODS[AveragedFOMAML.name] = AveragedFOMAML
