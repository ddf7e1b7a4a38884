"""The same methods as a user would write them by hand: plain eager torch, a Python loop over tasks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

import amaml_core as am
from amaml_core.errors import positive_integer, positive_number
from bench.peers.base import Peer, PeerGradient, flat, model_at, task_by_task

Parameters = Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Loop(Peer):
    """What the loops share."""

    @abstractmethod
    def _one_task(self, bench: Bench, task: am.TaskBatch) -> tuple[Tensor, Tensor]:
        """One task's query loss and gradient ``[d]``."""

    def _calls(self) -> dict[str, int]:
        """Gradients and Hessian-vector products of one task."""
        return {"grad_evals": self.inner_steps, "hvp_evals": 0}

    def _prepare(self, problem: am.MetaProblem, theta: Tensor, tasks: am.TaskBatch) -> Callable[[], PeerGradient]:
        return task_by_task(partial(self._one_task, Bench(problem, theta)), tasks, **self._calls())


class Bench:
    """A network to work on and the θ that every task starts from.

    Attributes:
        net: the network; its parameters are written to.
        start: θ by parameter.
    """

    def __init__(self, problem: am.MetaProblem, theta: Tensor) -> None:
        self.problem, self.net = problem, model_at(problem, theta)
        self.names = [name for name, _ in self.net.named_parameters()]
        self.start = [value.detach().clone() for value in self.net.parameters()]

    def functional(self, params: Parameters, x: Tensor) -> Tensor:
        """The network's output with these parameters in it."""
        return functional_call(self.net, dict(zip(self.names, params, strict=True)), (x,))

    def train(self, task: am.TaskBatch, steps: int, lr: float, decay: float = 0.0) -> Parameters:
        """K steps u ← u − α (∇L_tr(u) + decay (u − θ)) in place, without a graph; the network's own parameters."""
        params = list(self.net.parameters())
        with torch.no_grad():
            for value, first in zip(params, self.start, strict=True):
                value.copy_(first)
        for _ in range(steps):
            loss = self.problem.inner_loss(self.net(task.support_x[0]), task.support_y[0])
            grads = torch.autograd.grad(loss, params)
            with torch.no_grad():
                for value, first, grad in zip(params, self.start, grads, strict=True):
                    if decay:
                        grad = grad.add(value - first, alpha=decay)
                    value.sub_(grad, alpha=lr)
        return params

    def query(self, task: am.TaskBatch, params: Parameters) -> tuple[Tensor, Tensor]:
        """L_val and ∇L_val ``[d]`` at the network's own parameters."""
        loss = self.problem.outer_loss(self.net(task.query_x[0]), task.query_y[0])
        return loss, flat(torch.autograd.grad(loss, params))


@dataclass(frozen=True, kw_only=True)
class LoopMAML(Loop):
    """By hand in eager torch: K steps with ``create_graph=True``, then one backward pass, a task at a time."""

    name = "loop-maml"

    @property
    def target(self) -> am.Target:
        """Always "unrolled"."""
        return "unrolled"

    def _calls(self) -> dict[str, int]:
        return {"grad_evals": self.inner_steps, "hvp_evals": self.inner_steps}

    def _one_task(self, bench: Bench, task: am.TaskBatch) -> tuple[Tensor, Tensor]:
        start = params = [value.clone().requires_grad_() for value in bench.start]
        for _ in range(self.inner_steps):
            loss = bench.problem.inner_loss(bench.functional(params, task.support_x[0]), task.support_y[0])
            grads = torch.autograd.grad(loss, params, create_graph=True)
            params = [value.sub(grad, alpha=self.inner_lr) for value, grad in zip(params, grads, strict=True)]
        loss = bench.problem.outer_loss(bench.functional(params, task.query_x[0]), task.query_y[0])
        return loss, flat(torch.autograd.grad(loss, start))


@dataclass(frozen=True, kw_only=True)
class LoopFOMAML(Loop):
    """By hand in eager torch: K steps in place, then the query gradient there, a task at a time."""

    name = "loop-fomaml"

    @property
    def target(self) -> am.Target:
        """Always "surrogate"."""
        return "surrogate"

    def _one_task(self, bench: Bench, task: am.TaskBatch) -> tuple[Tensor, Tensor]:
        return bench.query(task, bench.train(task, self.inner_steps, self.inner_lr))


@dataclass(frozen=True, kw_only=True)
class LoopReptile(Loop):
    """By hand in eager torch: θ − u_K after K steps in place, a task at a time."""

    name = "loop-reptile"

    @property
    def target(self) -> am.Target:
        """Always "surrogate"."""
        return "surrogate"

    def _one_task(self, bench: Bench, task: am.TaskBatch) -> tuple[Tensor, Tensor]:
        params = bench.train(task, self.inner_steps, self.inner_lr)
        with torch.no_grad():
            loss = bench.problem.outer_loss(bench.net(task.query_x[0]), task.query_y[0])
        return loss, flat(bench.start) - flat(params).detach()


@dataclass(frozen=True, kw_only=True)
class LoopIMAML(Loop):
    """By hand in eager torch: K steps on L_tr + λ/2‖u−θ‖² in place, then CG on (I + H/λ) x = ∇L_val, a task at a time.

    Attributes:
        lam: λ.
        cg_steps: conjugate-gradient iterations.
        cg_tol: relative residual below which they stop.
    """

    lam: float = 1.0
    cg_steps: int = 5
    cg_tol: float = 1e-3

    name = "loop-imaml"

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("cg_steps", self.cg_steps)
        for name in ("lam", "cg_tol"):
            positive_number(name, getattr(self, name))

    @property
    def target(self) -> am.Target:
        """Always "stationary"."""
        return "stationary"

    def _calls(self) -> dict[str, int]:
        return {"grad_evals": self.inner_steps + 1, "hvp_evals": self.cg_steps}

    def _one_task(self, bench: Bench, task: am.TaskBatch) -> tuple[Tensor, Tensor]:
        params = bench.train(task, self.inner_steps, self.inner_lr, decay=self.lam)
        loss, right_side = bench.query(task, params)
        support = bench.problem.inner_loss(bench.net(task.support_x[0]), task.support_y[0])
        gradient = flat(torch.autograd.grad(support, params, create_graph=True))

        def matvec(v: Tensor) -> Tensor:
            return v + flat(torch.autograd.grad(gradient, params, v, retain_graph=True)) / self.lam

        return loss, self._solve(matvec, right_side)

    def _solve(self, matvec: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
        x, residual, direction = torch.zeros_like(b), b, b
        squared = first = b @ b
        for iteration in range(self.cg_steps):
            image = matvec(direction)
            curvature = direction @ image
            if curvature <= 0:  # not positive definite: what there is so far
                return x if iteration else b
            step = squared / curvature
            x = x + step * direction
            residual = residual - step * image
            previous, squared = squared, residual @ residual
            if squared <= self.cg_tol**2 * first:
                break
            direction = residual + (squared / previous) * direction
        return x
