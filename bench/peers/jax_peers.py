"""Unrolled gradient descent in JAX, differentiated by reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

import amaml_core as am
from amaml_core.errors import positive_integer
from bench.peers.base import PeerGradient
from bench.peers.jax_model import JaxPeer, JaxProblem, compiled, convert

Form = Literal["auto", "map", "vmap", "unrolled"]

UNROLLED = 16  # steps up to which a program without loops still compiles in a minute


@dataclass(frozen=True, kw_only=True)
class JaxMAML(JaxPeer):
    """JAX: d/dθ L_val(u_K) by reverse mode through a jitted scan of K steps.

    Attributes:
        form: of the compiled program. "map": a scan over steps in a loop over tasks; "vmap": a scan over steps of all
            tasks at once; "unrolled": no loop at all; "auto": see ``form_on``.
        unroll: steps that one pass of the scan over steps makes.
    """

    form: Form = "auto"
    unroll: int = 1

    name = "jax-maml"
    packages = ("jax", "jaxlib")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in get_args(Form):
            raise am.InputError(f"form={self.form!r} is unknown; choose one of {', '.join(get_args(Form))}.")
        positive_integer("unroll", self.unroll)
        if self.form == "unrolled" and self.unroll > 1:
            raise am.InputError(f'form="unrolled" has no loop for unroll={self.unroll}; drop one of them.')

    @property
    def target(self) -> am.Target:
        """Always "unrolled"."""
        return "unrolled"

    def _prepare(self, problem: am.MetaProblem, theta: Tensor, tasks: am.TaskBatch) -> Callable[[], PeerGradient]:
        made, form = convert(self, problem, theta, tasks), self.form_on(theta.device.type, problem)
        jax, descend = made.jax, self._descend(made, form)

        def adapted(theta: Any, task: Any) -> Any:
            support_x, support_y, query_x, query_y = task
            return made.outer_loss(descend(theta, support_x, support_y), query_x, query_y)

        def update(theta: Any, *tasks: Any) -> Any:
            one = lambda task: jax.value_and_grad(adapted)(theta, task)  # noqa: E731
            losses, grads = jax.lax.map(one, tasks) if form == "map" else jax.vmap(one)(tasks)
            return losses, grads, jax.numpy.ones(len(losses), bool)

        return compiled(self, made, update)

    def form_on(self, device: str, problem: am.MetaProblem) -> Form:
        """The form; what "auto" is on a device of this type.

        On a GPU "vmap", whose kernels are few and large. On the CPU "unrolled" up to ``UNROLLED`` steps of a model with
        convolutions, which run several times slower inside a loop, else "map", where the residuals of one task at a
        time are in the caches' reach; "map" too where ``unroll`` asks for a loop.
        """
        if self.form != "auto":
            return self.form
        if device != "cpu":
            return "vmap"
        convolves = any(isinstance(module, nn.Conv2d) for module in problem.model.modules())
        return "unrolled" if convolves and self.inner_steps <= UNROLLED and self.unroll == 1 else "map"

    def _descend(self, made: JaxProblem, form: Form) -> Callable[[Any, Any, Any], Any]:
        """(θ, x, y) -> u_K."""
        return repeated(made, self._step(made), self.inner_steps, form, self.unroll)

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
            least near √K, at the price of one more way forward; ``unroll`` is of the inner one.
    """

    segment: int = 1

    name = "jax-remat-maml"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("segment", self.segment)
        if self.inner_steps % self.segment:
            raise am.InputError(f"segment={self.segment} does not divide inner_steps={self.inner_steps}; choose one.")

    def form_on(self, device: str, problem: am.MetaProblem) -> Form:
        """The form, where "auto" is "vmap" on any device."""
        return "vmap" if self.form == "auto" else self.form

    def _descend(self, made: JaxProblem, form: Form) -> Callable[[Any, Any, Any], Any]:
        # without a loop the compiler would merge the recomputation with what it recomputes
        merges = form == "unrolled" or self.unroll > 1
        checkpoint = lambda step: made.jax.checkpoint(step, prevent_cse=merges)  # noqa: E731
        step = checkpoint(self._step(made))
        if self.segment == 1:
            return repeated(made, step, self.inner_steps, form, self.unroll)
        step = checkpoint(repeated(made, step, self.segment, form, self.unroll))
        return repeated(made, step, self.inner_steps // self.segment, form)


def repeated(
    made: JaxProblem, step: Callable[[Any, Any, Any], Any], count: int, form: Form, unroll: int = 1
) -> Callable[[Any, Any, Any], Any]:
    """``count`` times ``step(u, x, y)``: a scan of ``unroll`` a pass, written out where the form wants no loop."""
    unroll = count if form == "unrolled" else unroll
    return lambda u, x, y: made.jax.lax.scan(lambda u, _: (step(u, x, y), None), u, length=count, unroll=unroll)[0]
