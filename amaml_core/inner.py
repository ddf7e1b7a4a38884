"""One batch of tasks: its inner objective and query loss as functions of u alone, counted, in any engine."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

from amaml_core.engine import blocks, graphs, inductor
from amaml_core.engine.captured import STATES, Same, captured
from amaml_core.engine.eager import Half, vector_jacobian
from amaml_core.engine.rule import per_call
from amaml_core.engine.threads import one_at_a_time
from amaml_core.errors import InputError, first_line
from amaml_core.masks import filled
from amaml_core.mistakes import MISTAKES, FailsError, refuse
from amaml_core.problem import MetaProblem
from amaml_core.tasks import TaskBatch
from amaml_core.writes import THETA

Step = Callable[..., tuple[Tensor, ...]]
"""A pure, hashable function (inner problem, *tensors) -> tensors: what the engine compiles as a whole."""


@dataclass(frozen=True)
class Linearization:
    """The inner gradient at a point and its derivative there, which any number of products may share.

    Attributes:
        gradient: ∇L_tr(u) + μ(u−θ), ``[B, d]``.
        hvp: v ``[B, d]`` -> (∇²L_tr(u) + μI) v, ``[B, d]``.
    """

    gradient: Float[Tensor, "tasks params"]
    hvp: Callable[[Tensor], Tensor]


class InnerProblem:
    """One batch of tasks: the inner objective L_tr(u) + μ/2‖u−θ‖² and the query loss, with counted evaluations.

    ``stats`` counts calls that serve the whole batch at once: ``grad_evals``, ``hvp_evals`` and ``linearizations``
    (a gradient whose graph is kept for Hessian-vector products; not counted among ``grad_evals``).

    Attributes:
        captures: whether what it runs is captured as CUDA graphs.
        captured: whether it is being captured itself: nothing may be read from the device then.

    Args:
        problem: model and losses.
        theta: θ ``[d]``, or a row a task ``[B, d]``; held fixed.
        tasks: B tasks.
        prox: μ.

    Raises:
        InputError: the tasks' dtype or device is not θ's, the model was put into a mode that has a memory, or the
            engine is "graphed" and there is no CUDA.
    """

    def __init__(self, problem: MetaProblem, theta: Tensor, tasks: TaskBatch, prox: float = 0.0) -> None:
        problem.check_tasks(theta, tasks)
        if any(value.is_inference() for value in (theta, *tasks.tensors().values())):
            theta, tasks = theta.clone(), tasks.map(torch.clone)  # autograd cannot keep what inference_mode made
        self.problem, handed = problem.handing()
        self.theta, self.tasks, self.prox = handed(THETA, theta.detach()), tasks, prox
        self.stats: Counter[str] = Counter(grad_evals=0, hvp_evals=0)
        self.captured = False
        self._found: dict[Hashable, Any] = {}  # what was made once, for these very inputs
        self.captures = problem.engine != "eager" and graphs.possible(theta.device)
        if problem.engine == "graphed" and not self.captures:
            raise InputError(f'engine="graphed" needs CUDA\'s current device; theta is on {theta.device}: move it all.')
        self.reads = captured(inner_loss=problem.inner_loss, outer_loss=problem.outer_loss, model=problem.model)
        data = filled(tasks.support), filled(tasks.query)
        self.manners = (
            problem.manner(problem.inner_loss, self.start(), data[0], self.reads),
            problem.manner(problem.outer_loss, self.start(), data[1], self.reads),
        )
        self.support, self.query = map(handed.data, self.manners, data)

    def per_call(self, cost: int = 1) -> int | None:
        """How many steps of ``cost`` gradients or products each make one built call; None in the eager engine."""
        if self.problem.engine == "eager":
            return None
        return 1 if self._on_blocks else per_call(cost)

    def whole(self, function: Callable[..., Any], key: Hashable, *given: Tensor | None) -> Any:
        """``function(self, *given)``, on CUDA captured as one graph in the engines that capture.

        ``function`` reads nothing from the device and returns any structure of tensors and plain values, the same plain
        values each time; ``key``: on what it depends besides.
        """
        if not self.captures:
            return function(self, *given)
        there, own = tuple(one is not None for one in given), [one for one in given if one is not None]
        if recorded := self._known((key, there), own, lambda: self._recorded(function, own, there)):
            graph, counted, results = recorded
            self.stats.update(counted)
            found = iter(graph(*own, *self._inputs, owner=self))
            return tree_map(lambda leaf: next(found) if leaf is Tensor else leaf, results)
        alone = copy.copy(self)
        alone.captures = False
        if self.problem.engine == "graphed":
            alone.problem = self.problem.with_engine("eager")
        return function(alone, *given)

    def _recorded(self, function: Callable[..., Any], own: Sequence[Tensor], there: Sequence[bool]) -> Any:
        """The graph of ``whole``, what it counts, and its results without their tensors; None where it cannot be."""
        last: list[Any] = []

        def call(*values: Tensor) -> list[Tensor]:
            static, mine = self._static(values[len(own) :]), iter(values)
            results = function(static, *(next(mine) if one else None for one in there))
            last[:] = static.stats, tree_map_only(Tensor, lambda _: Tensor, results)
            return [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]

        return (graph, *last) if (graph := self._graph(call, own)) else None

    def _known(self, what: tuple[Hashable, ...], own: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What is made once of this, for such tensors of its own and all else that it depends on."""
        mine = (*what, *map(_kind, own))
        if mine not in self._found:
            kept, key = self.problem.compiled, (*mine, self.prox, self._context, *map(_kind, self._inputs))
            with one_at_a_time:
                kept[key] = kept.pop(key) if key in kept else make()  # what was not used for longest comes first
                self._found[mine] = kept[key]
        return self._found[mine]

    def _graph(self, function: Callable[..., Sequence[Tensor]], own: Sequence[Tensor]) -> graphs.Graph | None:
        """A function captured, another graph let go where there are many; None, and told, where it cannot be."""
        kept = self.problem.compiled
        held = [key for key, value in kept.items() if isinstance(value, tuple) and isinstance(value[0], graphs.Graph)]
        if len(held) >= graphs.MOST:
            del kept[held[0]]
        try:
            return graphs.Graph(function, [*own, *self._inputs], len(own))
        except (InputError, torch.OutOfMemoryError):
            raise
        except MISTAKES as error:
            self.problem.tell(f"No CUDA graph of it could be captured ({first_line(error)}); kernels go one by one.")
            return None

    def let_go(self) -> None:
        """Forget what was built: the problem keeps what it wants."""
        self._found.clear()

    def run(self, step: Step, *tensors: Tensor) -> tuple[Tensor, ...]:
        """``step(self, *tensors)``, built as a whole unless eager. Nothing in it may be differentiated later."""
        if self.problem.engine == "eager":
            return step(self, *tensors)
        if self._on_blocks and not self.captures:
            return self._blocked(step, tensors)
        return self._built(inductor.compile_function, step, tensors) or step(self, *tensors)

    @cached_property
    def _on_blocks(self) -> bool:
        """Whether steps are written as kernels of a thread block a task: see ``engine.blocks``."""
        if self.problem.engine != "compiled" or not graphs.possible(self.theta.device):
            return False
        batched = all(manner.batched for manner in self.manners)
        return batched and self._block(_detached_gradient, (self.start().contiguous(),)) is not None

    def _blocked(self, step: Step, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A step as kernels of its own; if it has no place in such, its parts as theirs."""
        tensors = tuple(tensor.contiguous() for tensor in tensors)
        if (found := self._block(step, tensors)) is None:
            return step(self, *tensors)
        function, counted = found
        self.stats.update(counted)
        return function(*tensors, *self._inputs)

    def _block(self, step: Step, tensors: Sequence[Tensor]) -> tuple[Callable[..., Any], Counter[str]] | None:
        arguments = [*tensors, *self._inputs]

        def build() -> tuple[Callable[..., Any], Counter[str]] | None:
            pure, counted = self._pure(step, len(tensors))
            own = [blocks.axis(tensor, len(self.tasks)) for tensor in tensors]
            leaves = len(tree_leaves((self.support, self.query)))
            axes = [*own, None if self.theta.ndim == 1 else 0, *[0] * leaves, *[None] * len(self.problem.frozen())]
            data = range(len(own) + 1, len(own) + 1 + leaves)
            shapes = [part.shape for part in self.problem.split(self.start()[0]).values()]
            try:
                return blocks.build(pure, arguments, axes, shapes, data), counted
            except blocks.UnsupportedError:
                return None

        return self._known((blocks.build, step), tensors, build)

    def pullback(
        self, step: Step, u: Tensor, *tensors: Tensor, once: bool = True
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The only result of ``step(self, u, *tensors)``, of u's shape, and its product v -> (∂result/∂u)ᵀ v.

        Where more than one product is wanted, say ``once=False``: else the graph is freed on the way.
        """
        if self.problem.engine == "compiled":
            if self._on_blocks:
                (value,) = self._blocked(Half(step, product=False), (u, *tensors))
                # what the product needs of that is computed again: cheaper than to keep it
                return value, lambda v: self._blocked(Half(step, product=True), (u, *tensors, v))[0]
            if built := self._built(inductor.compile_pullback, step, (u, *tensors)):
                return built
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (value,) = step(self, u, *tensors)
        return value.detach(), lambda v: self._told(vector_jacobian, value, u, v, keep=not once)

    def _told(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """A derivative by autograd, or built code; what somebody's backward raises is told as what a forward does."""
        try:
            return function(*arguments, **options)
        except MISTAKES as error:
            if self.problem.tracing:
                raise
            refuse(error)

    def _built(self, compile_: Callable[..., Any], step: Step, tensors: Sequence[Tensor]) -> Any:
        """What a step's built form gives; None where there is none."""
        own = [tensor.contiguous() for tensor in tensors]
        what = compile_, step, self.captures, torch.get_num_threads()
        function, counted = self._known(what, own, partial(self._build, compile_, step, own))
        if function is not None:
            self.stats.update(counted)
            owner = {"owner": self} if isinstance(function, graphs.Graph) else {}
            return self._told(function, *own, *self._inputs, **owner)

    @cached_property
    def _inputs(self) -> list[Tensor]:
        """What a trace is given besides the step's own tensors."""
        data = tree_leaves((self.support, self.query))
        return [self.theta, *(leaf.contiguous() for leaf in data), *self.problem.frozen().values()]

    @cached_property
    def _context(self) -> tuple[Hashable, ...]:
        """On what a trace depends besides its tensors.

        Raises:
            InputError: what the losses or the model read is another time and again.
        """
        problem, device = self.problem, self.theta.device.type
        modes = tuple(module.training for module in problem.model.modules())
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        manners = tuple(astuple(manner) for manner in self.manners)
        structure = tree_flatten((self.support, self.query))[1]
        reads = self.reads
        if reads not in problem.reads:
            if len(problem.reads) == STATES:
                last = problem.reads[-1]
                culprit = next(path for path in [*reads, *last] if reads.get(path) != last.get(path))
                raise InputError(
                    f"What is compiled holds {culprit}, which changes time and again; make it a tensor that is changed "
                    'in place, or use engine="eager".'
                )
            problem.reads.append(reads)
        held = tuple(graphs.memory(read.value) for read in reads.values() if isinstance(read, Same) and self.captures)
        return problem.reads.index(reads), modes, autocast, manners, str(structure), held

    def _build(
        self, compile_: Callable[..., Any], step: Step, own: Sequence[Tensor]
    ) -> tuple[Callable[..., Any] | None, Counter[str]]:
        """A step built for such tensors of its own, if it can be, and what each call of it evaluates."""
        built, (pure, counted) = None, self._pure(step, len(own))
        if self._on_blocks:
            pure, counted = self._pure(lambda inner, *tensors: inner._blocked(step, tensors), len(own), self._static)
        elif self.problem.engine == "compiled":
            try:
                built = compile_(pure, [*own, *self._inputs])
            except inductor.OtherNumbersError as error:
                self.problem.tell(f"{error}: such steps are not compiled.")
        if self.captures and compile_ is inductor.compile_function:
            built = self._graph(built or pure, own) or built
        return built, counted

    def _static(self, inputs: Sequence[Tensor]) -> InnerProblem:
        """This inner problem on these tensors, to be captured."""
        static = self._traced(inputs)
        static.captured, static.problem.engine = True, "compiled" if self.problem.engine == "compiled" else "eager"
        return static

    def _pure(
        self, step: Step, own: int, on: Callable[[Sequence[Tensor]], InnerProblem] | None = None
    ) -> tuple[Callable[..., tuple[Tensor, ...]], Counter[str]]:
        """A step as a function of ``own`` tensors and ``_inputs``, and what it evaluates, known once it was called."""
        counted: Counter[str] = Counter()

        def pure(*values: Tensor) -> tuple[Tensor, ...]:
            traced = (on or self._traced)(values[own:])
            results = step(traced, *values[:own])
            counted.clear()
            counted.update(traced.stats)
            return results

        return pure, counted

    def _traced(self, inputs: Sequence[Tensor]) -> InnerProblem:
        """This inner problem with these tensors in the place of its own, for a trace."""
        theta, *rest = inputs
        leaves, structure = tree_flatten((self.support, self.query))
        traced = copy.copy(self)
        traced.theta, traced.stats, traced.captures, traced._found = theta, Counter(), False, {}
        for name in ("_inputs", "_on_blocks"):
            traced.__dict__.pop(name, None)
        traced.support, traced.query = tree_unflatten(rest[: len(leaves)], structure)
        traced.problem = self.problem.traced(dict(zip(self.problem.frozen(), rest[len(leaves) :], strict=True)))
        return traced

    def start(self) -> Float[Tensor, "tasks params"]:
        """u(0) = θ for every task, ``[B, d]`` (a view, not to be written to)."""
        return self.theta.expand(len(self.tasks), -1)

    def loss(self, u: Float[Tensor, "tasks params"]) -> Float[Tensor, " tasks"]:
        """The inner objective, ``[B]``."""
        value = self.problem.losses(self.problem.inner_loss, u, self.support, self.manners[0])
        return value + 0.5 * self.prox * (u - self.theta).square().sum(-1) if self.prox else value

    def gradient(
        self, u: Float[Tensor, "tasks params"], *, create_graph: bool = False
    ) -> Float[Tensor, "tasks params"]:
        """The inner objective's gradient, ``[B, d]``; differentiable in u where ``create_graph`` is set."""
        self.stats["grad_evals"] += 1
        if create_graph:
            return _gradient(self, u)[0]
        return self.run(_detached_gradient, u)[0]

    def linearize(self, u: Float[Tensor, "tasks params"]) -> Linearization:
        """The gradient at u and its products with vectors, from one shared graph (reverse over reverse)."""
        self.stats["linearizations"] += 1
        gradient, product = self.pullback(_gradient, u, once=False)  # the Hessian is symmetric

        def hvp(v: Tensor) -> Tensor:
            self.stats["hvp_evals"] += 1
            return product(v)

        return Linearization(gradient, hvp)

    def query_loss(self, u: Float[Tensor, "tasks params"]) -> Float[Tensor, " tasks"]:
        """L_val, ``[B]``."""
        return self.problem.losses(self.problem.outer_loss, u, self.query, self.manners[1])

    def at_start(self) -> tuple[Float[Tensor, " tasks"], Float[Tensor, "tasks params"]]:
        """The inner objective and its gradient at θ, uncounted: what a failure is told by."""
        return _with_gradient(self, self.loss, self.start().clone())

    def fails_at_start(self) -> bool:
        """Whether model, losses or their derivatives raise something at θ itself: then no step is to blame."""
        alone = copy.copy(self)
        alone.stats, u = Counter(), self.start()
        try:
            alone.query_gradient(u)
            if self.manners[0].first_order:
                alone.gradient(u)
            else:
                alone.linearize(u).hvp(torch.ones_like(u))
        except FailsError:
            return True
        return False

    def query_gradient(
        self, u: Float[Tensor, "tasks params"]
    ) -> tuple[Float[Tensor, " tasks"], Float[Tensor, "tasks params"]]:
        """L_val ``[B]`` and ∇L_val ``[B, d]``."""
        loss, gradient = self.run(_query_gradient, u)
        return loss, gradient


def _kind(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.dtype, tensor.device


def _gradient(inner: InnerProblem, u: Tensor, create_graph: bool = True) -> tuple[Tensor, ...]:
    if create_graph and (why := inner.manners[0].first_order):
        raise InputError(
            f"The inner loss has no second derivative ({why}), which this method needs; use fomaml or reptile, or "
            "write that part of the model in operators that can be differentiated twice."
        )
    with torch.enable_grad():
        # tasks do not interact, so the gradient of the sum holds each task's own gradient
        total = inner.loss(u).sum()
        return inner._told(torch.autograd.grad, total, u, create_graph=create_graph)


def _detached_gradient(inner: InnerProblem, u: Tensor) -> tuple[Tensor, ...]:
    return _gradient(inner, u.detach().requires_grad_(), create_graph=False)


def _query_gradient(inner: InnerProblem, u: Tensor) -> tuple[Tensor, Tensor]:
    return _with_gradient(inner, inner.query_loss, u)


def _with_gradient(inner: InnerProblem, function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        loss = function(u)
        return loss.detach(), inner._told(torch.autograd.grad, loss.sum(), u)[0]
