"""higher: inner loops in eager torch through a patched module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import amaml_core as am
from bench.peers.base import Peer, PeerGradient, flat, imported, model_at, task_by_task


@dataclass(frozen=True, kw_only=True)
class HigherMAML(Peer):
    """higher: K steps of SGD a task inside ``innerloop_ctx``, differentiated task by task, as in its MAML example."""

    name = "higher-maml"
    packages = ("higher",)

    @property
    def target(self) -> am.Target:
        """Always "unrolled"."""
        return "unrolled"

    def _prepare(self, problem: am.MetaProblem, theta: Tensor, tasks: am.TaskBatch) -> Callable[[], PeerGradient]:
        higher = imported("higher")
        net = model_at(problem, theta)
        start = tuple(net.parameters())
        optimizer = torch.optim.SGD(start, lr=self.inner_lr)

        def one_task(task: am.TaskBatch) -> tuple[Tensor, Tensor]:
            context = higher.innerloop_ctx(net, optimizer, copy_initial_weights=False, track_higher_grads=True)
            with context as (patched, differentiable):
                for _ in range(self.inner_steps):
                    differentiable.step(problem.inner_loss(patched(task.support_x[0]), task.support_y[0]))
                loss = problem.outer_loss(patched(task.query_x[0]), task.query_y[0])
                return loss.detach(), flat(torch.autograd.grad(loss, start))

        return task_by_task(one_task, tasks, grad_evals=self.inner_steps, hvp_evals=self.inner_steps)
