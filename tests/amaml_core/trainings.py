"""A short training, as the tests of the outer loop and of its checkpoints make it."""

from functools import partial

import torch
from oracles import Case

import amaml_core as am

SGD = partial(torch.optim.SGD, lr=0.05)


def maml(steps: int = 2, lr: float = 0.05) -> am.MetaGradientMethod:
    return am.create_method("maml", inner_steps=steps, inner_lr=lr)


def go(
    case: Case, updates: int = 12, size: int = 2, seed: int = 0, method: am.MetaGradientMethod | None = None, **rest
):
    batch = rest.pop("batch", am.batches(case.tasks, size, seed))
    return am.train(method or maml(), case.problem, batch, updates=updates, meta=case.theta, **rest)


def same(a: am.Training, b: am.Training) -> bool:
    return torch.equal(a.theta, b.theta) and torch.equal(a.losses, b.losses) and a.status == b.status
