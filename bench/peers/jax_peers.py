"""Unrolled gradient descent in JAX, differentiated by reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

import amaml_core as am
from amaml_core.errors import positive_integer
from bench.peers.base import Peer, PeerGradient
from bench.peers.jax_model import JaxProblem, compiled, convert

Form = Literal["auto", "map", "vmap", "unrolled"]

UNROLLED = 16  # steps up to which a program without loops still compiles in a minute


@dataclass(frozen=True, kw_only=True)
class JaxMAML(Peer):
    """JAX: d/dθ L_val(u_K) by reverse mode through a jitted scan of K steps.

    Attributes:
        form: of the compiled program. "map": a scan over steps in a loop over tasks; "vmap": a scan over steps of all
            tasks at once; "unrolled": no loop at all; "auto", for the CPU: "unrolled" up to ``UNROLLED`` steps of a
            model with convolutions, which run several times slower inside a loop, else "map", where the residuals of
            one task at a time are in the caches' reach.
    """

    form: Form = "auto"

    name = "jax-maml"
    packages = ("jax", "jaxlib")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in get_args(Form):
            raise am.InputError(f"form={self.form!r} is unknown; choose one of {', '.join(get_args(Form))}.")

    @property
    def target(self) -> am.Target:
        """Always "unrolled"."""
        return "unrolled"

    def _prepare(self, problem: am.MetaProblem, theta: Tensor, tasks: am.TaskBatch) -> Callable[[], PeerGradient]:
        made, form = convert(self.name, problem, theta, tasks), self._form(problem)
        jax, descend = made.jax, self._descend(made, form)

        def adapted(theta: Any, task: Any) -> Any:
            support_x, support_y, query_x, query_y = task
            return made.outer_loss(descend(theta, support_x, support_y), query_x, query_y)

        def update(theta: Any, *tasks: Any) -> Any:
            one = lambda task: jax.value_and_grad(adapted)(theta, task)  # noqa: E731
            losses, grads = jax.lax.map(one, tasks) if form == "map" else jax.vmap(one)(tasks)
            return losses, grads, jax.numpy.ones(len(losses), bool)

        return compiled(made, update)

    def _form(self, problem: am.MetaProblem) -> Form:
        if self.form != "auto":
            return self.form
        convolves = any(isinstance(module, nn.Conv2d) for module in problem.model.modules())
        return "unrolled" if convolves and self.inner_steps <= UNROLLED else "map"

    def _descend(self, made: JaxProblem, form: Form) -> Callable[[Any, Any, Any], Any]:
        """(θ, x, y) -> u_K."""
        return repeated(made, self._step(made), self.inner_steps, form)

    def _step(self, made: JaxProblem) -> Callable[[Any, Any, Any], Any]:
        gradient = made.jax.grad(made.inner_loss)
        return lambda u, x, y: u - self.inner_lr * gradient(u, x, y)


@dataclass(frozen=True, kw_only=True)
class JaxRematMAML(JaxMAML):
    """JAX: the same with each step rematerialised on the way back (``jax.checkpoint``).

    Attributes:
        form: as in ``JaxMAML``, but "auto" is "vmap": with little kept all tasks fit, and without a loop the compiler
            would lay out the memory of all steps side by side.
        segment: steps between two states that are kept. More than 1 nests two checkpointed scans, whose memory is
            least near √K, at the price of one more way forward.
    """

    segment: int = 1

    name = "jax-remat-maml"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("segment", self.segment)
        if self.inner_steps % self.segment:
            raise am.InputError(f"segment={self.segment} does not divide inner_steps={self.inner_steps}; choose one.")

    def _form(self, problem: am.MetaProblem) -> Form:
        return "vmap" if self.form == "auto" else self.form

    def _descend(self, made: JaxProblem, form: Form) -> Callable[[Any, Any, Any], Any]:
        # without a loop the compiler would merge the recomputation with what it recomputes
        checkpoint = lambda step: made.jax.checkpoint(step, prevent_cse=form == "unrolled")  # noqa: E731
        step = checkpoint(self._step(made))
        if self.segment > 1:
            step = checkpoint(repeated(made, step, self.segment, form))
        return repeated(made, step, self.inner_steps // self.segment, form)


def repeated(
    made: JaxProblem, step: Callable[[Any, Any, Any], Any], count: int, form: Form
) -> Callable[[Any, Any, Any], Any]:
    """``count`` times ``step(u, x, y)``: a scan, written out where the form wants no loop."""
    unroll = count if form == "unrolled" else 1
    return lambda u, x, y: made.jax.lax.scan(lambda u, _: (step(u, x, y), None), u, length=count, unroll=unroll)[0]
