"""What every meta-gradient method is: options in, a gradient with its evidence out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from numbers import Number
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from amaml_core.engine.rule import pieces
from amaml_core.engine.threads import side_by_side
from amaml_core.errors import InputError, first_line, positive_integer, positive_number
from amaml_core.inner import InnerProblem
from amaml_core.mistakes import FailsError
from amaml_core.ode.scheme import SolverFailedError
from amaml_core.problem import NOT_FINITE, MetaProblem
from amaml_core.status import OK, Code, Status
from amaml_core.tasks import TaskBatch

Target = Literal["unrolled", "flow", "stationary", "surrogate"]
"""What a method estimates: the gradient of K discrete steps, of the ODE at T, of the inner optimum, or a stand-in."""

PEAKS = frozenset({"states_stored"})  # the statistics of which chunks of tasks report the largest, not the sum


@dataclass(frozen=True)
class Adaptation:
    """Tasks after adaptation.

    Attributes:
        adapted: u_b(T_b), ``[B, d]``.
        query_loss: L_val(u_b(T_b)), ``[B]``.
        horizon: T_b as used, early stopping included, ``[B]``.
        status: one a task; a task that failed stays in its place with the values that it reached. "diverged" means
            values that are not finite, or an adjoint that is unstable or missed its start, "inaccurate" a flow's
            gradient that is further off than ``accuracy.INACCURATE``: huge but finite values of a method that is exact
            for its discrete steps are "ok".
        stats: plain integers, summed over chunks, the largest of groups that ran side by side: ``grad_evals``,
            ``hvp_evals``, ``forward_steps``, …
    """

    adapted: Float[Tensor, "tasks params"]
    query_loss: Float[Tensor, " tasks"]
    horizon: Float[Tensor, " tasks"]
    status: tuple[Status, ...]
    stats: dict[str, int]


@dataclass(frozen=True)
class MetaGradient(Adaptation):
    """A meta-gradient and what it rests on.

    Attributes:
        task_grads: dJ_b/dθ, ``[B, d]``.
        grads: the mean over tasks for each meta-parameter. A task that diverged makes it NaN or large, never absent.
        horizon_grad: dJ_b/dT_b, ``[B]``, for the methods whose target is the flow.
        defect: for these methods, ``[B]``, how far ⟨λ(0), f(θ)⟩ and dJ_b/dT_b are apart as a share of the larger, which
            along a flow are the same; see ``accuracy.defect``.
        mismatch: the distance itself, ``[B]``.
        error_estimate: for these methods, ``[B]``, of ‖task_grads − the flow's‖ / ‖task_grads‖; None where there was
            no need for it and nobody asked.
    """

    task_grads: Float[Tensor, "tasks params"]
    grads: dict[str, Tensor]
    horizon_grad: Float[Tensor, " tasks"] | None = None
    defect: Float[Tensor, " tasks"] | None = None
    mismatch: Float[Tensor, " tasks"] | None = None
    error_estimate: Float[Tensor, " tasks"] | None = None

    @property
    def grad(self) -> Float[Tensor, " params"]:
        """dJ/dθ, ``[d]``, the mean over tasks."""
        return self.grads["theta"]


class Doubt(NamedTuple):
    """What may be wrong with a task's gradient, known when the device's work is done.

    Attributes:
        where: ``[B]``, whether it is so.
        code: the status that it means.
        remedy: in words; ``{}`` in it stands for the figure.
        figure: ``[B]``.
    """

    where: Bool[Tensor, " tasks"]
    code: Code
    remedy: str
    figure: Float[Tensor, " tasks"] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a method's own code hands back for one chunk of tasks.

    Attributes:
        u: the adapted parameters, ``[B, d]``.
        horizon: T_b as used, ``[B]``.
        query_loss: ``[B]``; worked out from u where it is None.
        task_grads: ``[B, d]``; None after mere adaptation.
        horizon_grad: ``[B]``, or None where it means nothing.
        defect: ``[B]``, or None likewise; see ``MetaGradient``.
        mismatch: likewise.
        doubts: of which the first that holds is a task's status; values that are not finite are noticed anyway.
    """

    u: Tensor
    horizon: Tensor
    query_loss: Tensor | None = None
    task_grads: Tensor | None = None
    horizon_grad: Tensor | None = None
    defect: Tensor | None = None
    mismatch: Tensor | None = None
    doubts: tuple[Doubt, ...] = ()


register_pytree_node(
    Outcome,
    lambda outcome: ([getattr(outcome, field.name) for field in fields(Outcome)], None),
    lambda values, _: Outcome(*values),
)


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """Whatever estimates a meta-gradient, ours or another library's: a frozen value that holds options only.

    Attributes:
        inner_steps: K, the number of gradient steps (or what stands for them).
        inner_lr: α; the horizon of the inner training is T = K·α.
    """

    inner_steps: int
    inner_lr: float

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):  # options are plain values, NumPy's scalars too
            if isinstance(value := getattr(self, field.name), Number):
                object.__setattr__(self, field.name, getattr(value, "item", lambda value=value: value)())
        positive_integer("inner_steps", self.inner_steps)
        positive_number("inner_lr", self.inner_lr)

    @property
    @abstractmethod
    def target(self) -> Target:
        """What it estimates with these options."""

    def options(self) -> dict[str, Any]:
        """All options, defaults written out: made with them it is the same again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class MetaGradientMethod(Estimator):
    """A meta-gradient method: an ``Estimator`` that adapts too, and that tells what its gradient rests on."""

    @abstractmethod
    def _differentiate(self, inner: InnerProblem, horizon: Float[Tensor, " tasks"]) -> Outcome:
        """Train and differentiate."""

    def _adapt(self, inner: InnerProblem, horizon: Float[Tensor, " tasks"]) -> Outcome:
        """Train from θ to T_b: K gradient steps, unless a method trains otherwise."""
        return Outcome(gradient_descent(inner, horizon, self.inner_steps), horizon)

    @property
    def inner_prox(self) -> float:
        """μ of the proximal term μ/2‖u−θ‖² in the inner objective."""
        return 0.0

    @property
    def horizon(self) -> float:
        """T = K·α."""
        return self.inner_steps * self.inner_lr

    def initial_meta_parameters(self, problem: MetaProblem, seed: int | None = None) -> dict[str, Tensor]:
        """The meta-parameters to start from; ``{"theta": [d]}`` unless a method learns more.

        Args:
            problem: model and losses.
            seed: see ``MetaProblem.initial_parameters``; the model's own values by default.
        """
        return {"theta": problem.initial_parameters(seed)}

    def adapt(self, problem: MetaProblem, meta: Tensor | Mapping[str, Tensor], tasks: TaskBatch) -> Adaptation:
        """Adapt to each task, without a meta-gradient. Arguments and errors as for ``meta_gradient``."""
        done, status, stats = self._over_chunks(problem, meta, tasks, self._adapt)
        assert done.query_loss is not None
        return Adaptation(done.u, done.query_loss, done.horizon, status, stats)

    def meta_gradient(
        self, problem: MetaProblem, meta: Tensor | Mapping[str, Tensor], tasks: TaskBatch
    ) -> MetaGradient:
        """The meta-gradient (1/B) Σ_b dJ_b/dθ with J_b = L_val(u_b(T_b)).

        Args:
            problem: model and losses.
            meta: θ ``[d]``, or the dict of meta-parameters.
            tasks: B tasks; ``tasks.horizon`` overrides T.

        Raises:
            InputError: θ, tasks and problem do not fit each other.
        """
        done, status, stats = self._over_chunks(problem, meta, tasks, self._differentiate)
        assert done.query_loss is not None
        assert done.task_grads is not None
        grads = {"theta": done.task_grads.mean(0)}
        told = (done.u, done.query_loss, done.horizon, status, stats)
        return MetaGradient(*told, done.task_grads, grads, done.horizon_grad, done.defect, done.mismatch)

    @torch.inference_mode(False)
    def _over_chunks(
        self, problem: MetaProblem, meta: Tensor | Mapping[str, Tensor], tasks: TaskBatch, run: Run
    ) -> tuple[Outcome, tuple[Status, ...], dict[str, int]]:
        if not isinstance(tasks, TaskBatch):
            raise InputError(f"tasks is a {type(tasks).__name__}; pass a TaskBatch.")
        if isinstance(meta, Mapping) and set(meta) != {"theta"}:
            raise InputError(f"{self.name} learns only theta; the meta-parameters hold {', '.join(meta) or 'nothing'}.")
        theta = meta["theta"] if isinstance(meta, Mapping) else meta
        if not isinstance(problem, MetaProblem) or not isinstance(theta, Tensor):
            given = type(problem).__name__, type(theta).__name__
            raise InputError(f"Pass a MetaProblem and theta as a tensor, not a {given[0]} and a {given[1]}.")
        problem.check_theta(theta, values=not theta.is_cuda)  # there it is told at the end, if anything is not finite
        if tasks.horizon is not None and tasks.horizon.dtype != theta.dtype:
            raise InputError(
                f"TaskBatch.horizon is {tasks.horizon.dtype} and theta {theta.dtype}; convert one of them."
            )
        stats: Counter[str] = Counter()
        parts: list[tuple[Outcome, list[Status]]] = []
        # compiled calls leave Python to others, and a thread of its own serves a task better than a share of each call
        threads = torch.get_num_threads() if problem.engine == "compiled" and theta.device.type == "cpu" else 1
        for chunk in tasks.chunks(problem.chunk_size):
            groups = [*chunk.chunks(-(-len(chunk) // threads))] if threads > 1 else [chunk]
            done = problem.unspoiled(
                lambda mine, groups=groups: side_by_side(lambda group: self._attempt(mine, theta, group, run), groups)
            )
            parts += [one for outcomes, _ in done for one in outcomes]
            _add(stats, {key: max(counted[key] for _, counted in done) for _, counted in done for key in counted})
        outcomes, statuses = zip(*parts, strict=True)
        joined = outcomes[0] if len(parts) == 1 else Outcome(*map(_join, zip(*map(_fields, outcomes), strict=True)))
        return joined, tuple(status for several in statuses for status in several), dict(stats)

    def _attempt(
        self, problem: MetaProblem, theta: Tensor, tasks: TaskBatch, run: Run
    ) -> tuple[list[tuple[Outcome, list[Status]]], Counter[str]]:
        inner = InnerProblem(problem, theta, tasks, self.inner_prox)
        horizon = theta.new_full((len(tasks),), self.horizon) if tasks.horizon is None else tasks.horizon
        try:
            if self.captures_whole:
                done, flags = inner.whole(partial(_finished, run), (type(self), repr(self), run.__name__), horizon)
            else:
                done, flags = _finished(run, inner, horizon)
        except (SolverFailedError, FailsError) as error:
            if len(tasks) > 1:  # one failing task must not take its neighbours along
                alone = problem.with_engine("eager")  # nothing is compiled for it
                parts: list[tuple[Outcome, list[Status]]] = []
                for one in tasks.chunks(1):
                    outcomes, counted = self._attempt(alone, theta, one, run)
                    parts += outcomes
                    _add(inner.stats, counted)
                return parts, inner.stats
            remedy = f"The solver gave up ({error}); shorten the horizon or check the loss."
            if isinstance(error, FailsError):
                if inner.fails_at_start():
                    raise
                told = first_line(error.__cause__ or error)
                remedy = f"The model or the loss fails on the task's way ({told}); lower inner_lr, or take more steps."
            nan, gave_up = torch.full_like(inner.start(), math.nan), torch.ones_like(horizon, dtype=torch.bool)
            nowhere = Outcome(nan, horizon, *(nan[:, 0], nan, nan[:, 0], nan[:, 0], nan[:, 0]))
            nowhere = replace(nowhere, doubts=(Doubt(gave_up, "diverged", remedy),))
            done, flags = _finished(lambda *_: nowhere, inner, horizon)
        inner.let_go()
        return [(done, _judged(done, flags, inner))], inner.stats

    @property
    def captures_whole(self) -> bool:
        """Whether an update always launches the same, whatever its values, and reads none: a CUDA graph can hold it.

        Of a method that does not say so the steps that it has the inner problem run are captured, each by itself.
        """
        return False


Run = Callable[[InnerProblem, Tensor], Outcome]


def _add(stats: Counter[str], more: Mapping[str, int]) -> None:
    for key, value in more.items():
        stats[key] = max(stats[key], value) if key in PEAKS else stats[key] + value


def _fields(outcome: Outcome) -> tuple[Any, ...]:
    return tuple(getattr(outcome, field.name) for field in fields(outcome))


def _join(values: tuple[Any, ...]) -> Any:
    if not all(isinstance(value, Tensor) for value in values):
        return None  # a failed task has NaN even where nobody asked for a gradient
    return torch.cat(values)


def _finished(run: Run, inner: InnerProblem, horizon: Tensor) -> tuple[Outcome, Bool[Tensor, "flags tasks"]]:
    """What a method found, its query loss too, and for each task: values that are not finite, and each doubt."""
    done = run(inner, horizon)
    if done.query_loss is None:
        with torch.no_grad():
            done = replace(done, query_loss=inner.query_loss(done.u))
    found = (done.horizon, done.u, done.query_loss, done.task_grads)
    return done, inner.whole(_flags, _flags, *found, *(doubt.where for doubt in done.doubts))


def _flags(inner: InnerProblem, horizon: Tensor, *found: Tensor | None) -> Tensor:
    """Of each task: whether u, query loss or gradient are not finite, and the doubts, which follow them."""
    finite = torch.ones_like(horizon, dtype=torch.bool)
    for value in found[:3]:
        if value is not None:
            finite &= torch.isfinite(value).flatten(1).all(1) if value.ndim > 1 else torch.isfinite(value)
    return torch.stack([~finite, *(one for one in found[3:] if one is not None)])


def _judged(done: Outcome, flags: Tensor, inner: InnerProblem) -> list[Status]:
    """Each task's status. This is the only place where the host waits for an update that ends well."""
    lost, *raised = flags.tolist()
    found = [OK] * len(lost)
    for index in range(len(lost)):
        doubt = next((doubt for doubt, holds in zip(done.doubts, raised, strict=True) if holds[index]), None)
        if doubt is not None:
            told = doubt.remedy if doubt.figure is None else doubt.remedy.format(float(doubt.figure[index]))
            found[index] = Status(doubt.code, told)
    if any(lost):
        if not bool(torch.isfinite(inner.theta).all()):
            raise InputError(NOT_FINITE)
        remedy = (
            "The numbers left the finite range; lower inner_lr, or take more steps or states over the same horizon."
        )
        at_start = (
            "The loss or its gradient is not finite at theta itself, before any step; mend the model, loss or start."
        )
        loss, gradient = inner.at_start()
        bad = ~(torch.isfinite(loss) & torch.isfinite(gradient).all(1))
        for index, (gone, hopeless) in enumerate(zip(lost, bad.tolist(), strict=True)):
            if gone and (hopeless or found[index] != "diverged"):
                found[index] = Status("diverged", at_start if hopeless else remedy)
    return found


@dataclass(frozen=True)
class Descend:
    """``count`` steps u ← u − h ∇L_tr(u), with h ``[B, 1]``, as a step of the engine; differentiable if asked for."""

    count: int
    create_graph: bool = False

    def __call__(self, inner: InnerProblem, u: Tensor, h: Tensor) -> tuple[Tensor]:
        """See ``Step``."""
        for _ in range(self.count):
            u = u - h * inner.gradient(u, create_graph=self.create_graph)
        return (u,)


def gradient_descent(
    inner: InnerProblem, horizon: Float[Tensor, " tasks"], steps: int
) -> Float[Tensor, "tasks params"]:
    """K steps u ← u − (T_b/K) ∇L_tr(u) from θ, ``[B, d]``; no graph, no state kept."""
    u, h = inner.start(), (horizon / steps).unsqueeze(-1)
    for count in pieces(steps, inner.per_call() or 1):
        (u,) = inner.run(Descend(count), u, h)
    inner.stats["forward_steps"] += steps
    return u


def unrolled(
    inner: InnerProblem, u: Float[Tensor, "tasks params"], h: Tensor, steps: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """u_K after K gradient steps of h ``[B, 1]``, and the product with (∂u_K/∂u)ᵀ; the graph of all steps is kept."""
    products = []
    for count in pieces(steps, inner.per_call() or steps):
        u, product = inner.pullback(Descend(count, create_graph=True), u, h)
        products.append(product)

    def pull(adjoint: Tensor) -> Tensor:
        inner.stats["hvp_evals"] += steps  # the way back runs once through each step's gradient
        while products:
            adjoint = products.pop()(adjoint)
        return adjoint

    return u, pull
