"""TorchOpt: differentiable optimisers in eager torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import amaml_core as am
from bench.peers.base import Peer, PeerGradient, flat, imported, model_at, task_by_task


@dataclass(frozen=True, kw_only=True)
class TorchOptMAML(Peer):
    """TorchOpt: K steps of its ``MetaSGD`` a task, as in its few-shot example; each task's graph is freed at once."""

    name = "torchopt-maml"
    packages = ("torchopt",)

    @property
    def target(self) -> am.Target:
        """Always "unrolled"."""
        return "unrolled"

    def _prepare(self, problem: am.MetaProblem, theta: Tensor, tasks: am.TaskBatch) -> Callable[[], PeerGradient]:
        torchopt = imported("torchopt")
        net = model_at(problem, theta)
        start = tuple(net.parameters())
        optimizer = torchopt.MetaSGD(net, lr=self.inner_lr)
        first = [torchopt.extract_state_dict(made, by="reference") for made in (net, optimizer)]

        def one_task(task: am.TaskBatch) -> tuple[Tensor, Tensor]:
            for _ in range(self.inner_steps):
                optimizer.step(problem.inner_loss(net(task.support_x[0]), task.support_y[0]))
            loss = problem.outer_loss(net(task.query_x[0]), task.query_y[0])
            for made, state in zip((net, optimizer), first, strict=True):
                torchopt.recover_state_dict(made, state)
            return loss.detach(), flat(torch.autograd.grad(loss, start))

        return task_by_task(one_task, tasks, grad_evals=self.inner_steps, hvp_evals=self.inner_steps)
