"""diffrax: the gradient of the flow through its differentiable solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import amaml_core as am
from amaml_core.errors import positive_integer, positive_number
from bench.peers.base import PeerGradient, imported
from bench.peers.jax_model import JaxPeer, compiled, convert

SOLVERS = {"bosh3": "Bosh3", "dopri5": "Dopri5", "dopri8": "Dopri8", "heun": "Heun", "tsit5": "Tsit5"}


@dataclass(frozen=True, kw_only=True)
class Diffrax(JaxPeer):
    """diffrax: reverse mode through the steps of an adaptive solve of du/dt = −∇L_tr(u), checkpointed.

    Attributes:
        solver: one of ``SOLVERS``. On gradient flows, which are mildly stiff, the cheapest steps are the best.
        rtol: of the step size control.
        atol: of the step size control.
        batched: one solve with one step size for all tasks, else one a task under vmap, where all go on until the
            last has arrived.
        max_steps: after which a solve counts as failed.
        checkpoints: states that are kept; steps beyond so many are recomputed on the way back.
    """

    solver: str = "bosh3"
    rtol: float = 1e-4
    atol: float = 1e-6
    batched: bool = True
    max_steps: int = 4096
    checkpoints: int = 64

    name = "diffrax"
    packages = ("jax", "jaxlib", "diffrax", "equinox")  # whose loop it is that keeps checkpoints

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in SOLVERS:
            raise am.InputError(f"solver={self.solver!r} is unknown; choose one of {', '.join(SOLVERS)}.")
        for name in ("rtol", "atol"):
            positive_number(name, getattr(self, name))
        for name in ("max_steps", "checkpoints"):
            positive_integer(name, getattr(self, name))
        if not isinstance(self.batched, bool):
            raise am.InputError(f"batched={self.batched!r} is neither true nor false.")

    @property
    def target(self) -> am.Target:
        """Always "flow"."""
        return "flow"

    def _prepare(self, problem: am.MetaProblem, theta: Tensor, tasks: am.TaskBatch) -> Callable[[], PeerGradient]:
        made, dfx = convert(self, problem, theta, tasks), imported("diffrax")
        jax, np = made.jax, made.jax.numpy
        gradient = jax.grad(made.inner_loss)

        def solve(slope: Callable[[Any], Any], start: Any) -> tuple[Any, Any]:
            done = dfx.diffeqsolve(
                dfx.ODETerm(lambda t, u, args: slope(u)),
                getattr(dfx, SOLVERS[self.solver])(),
                t0=0.0,
                t1=self.inner_steps * self.inner_lr,
                dt0=None,
                y0=start,
                stepsize_controller=dfx.PIDController(rtol=self.rtol, atol=self.atol),
                adjoint=dfx.RecursiveCheckpointAdjoint(checkpoints=self.checkpoints),
                max_steps=self.max_steps,
                throw=False,
            )
            return done.ys[0], done.result == dfx.RESULTS.successful

        def together(starts: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
            u, solved = solve(lambda u: -jax.vmap(gradient)(u, support_x, support_y), starts)
            losses = jax.vmap(made.outer_loss)(u, query_x, query_y)
            return losses.sum(), (losses, np.broadcast_to(solved, losses.shape))

        def alone(start: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
            u, solved = solve(lambda u: -gradient(u, support_x, support_y), start)
            loss = made.outer_loss(u, query_x, query_y)
            return loss, (loss, solved)

        def update(theta: Any, *tasks: Any) -> Any:
            starts = np.broadcast_to(theta, (len(tasks[0]), len(theta)))
            graded = jax.value_and_grad(together if self.batched else alone, has_aux=True)
            (_, (losses, solved)), grads = (graded if self.batched else jax.vmap(graded))(starts, *tasks)
            return losses, grads, solved

        remedy = f"The solver gave up (max_steps={self.max_steps}); raise it or the tolerances."
        return compiled(self, made, update, remedy)
