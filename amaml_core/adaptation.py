"""Meta-test: how the error on new tasks falls while they adapt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_leaves

from amaml_core.engine.rule import pieces
from amaml_core.errors import InputError, positive_number
from amaml_core.inner import InnerProblem
from amaml_core.masks import filled
from amaml_core.methods.base import Descend
from amaml_core.problem import MetaProblem
from amaml_core.tasks import TaskBatch

Measure = Callable[[Any, Any, Tensor | None], Tensor]
"""(prediction, target, mask) -> one number a task, ``[B]``; the mask ``[B, n]`` tells which examples count."""


@dataclass(frozen=True)
class AdaptationCurve:
    """Errors on the query sets while the tasks adapt.

    Attributes:
        steps: gradient steps made, in rising order, ``[S]``.
        errors: of each task after so many, ``[B, S]``; not finite where a task diverged.
        adapted: the parameters after the last step, ``[B, d]``.
    """

    steps: tuple[int, ...]
    errors: Float[Tensor, "tasks steps"]
    adapted: Float[Tensor, "tasks params"]


@torch.inference_mode(False)
def adaptation_curve(
    problem: MetaProblem,
    theta: Float[Tensor, " params"],
    tasks: TaskBatch,
    *,
    inner_lr: float,
    steps: Sequence[int],
    measure: Measure | None = None,
    query_mask: Bool[Tensor, "tasks query"] | None = None,
) -> AdaptationCurve:
    """Gradient descent from θ on every task's support set, with the error on its query set on the way.

    All tasks adapt at once, ``problem.chunk_size`` at a time where that is set (Li et al. 2023, sec. 5.1).

    Args:
        problem: model and losses; the inner loss is descended.
        theta: where every task starts, ``[d]``.
        tasks: B new tasks.
        inner_lr: α.
        steps: numbers of steps after which the error is measured; 0 is the error before any.
        measure: of the error; ``rmse`` by default.
        query_mask: which query examples count, where tasks have different numbers of them; those of the tasks by
            default.

    Raises:
        InputError: θ, tasks and problem do not fit each other, ``steps`` holds no or a negative number, or ``measure``
            returns anything but a number a task.

    Example:
        >>> import torch, amaml_core as am
        >>> problem = am.MetaProblem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
        >>> x, y = torch.randn(8, 10, 2), torch.randn(8, 10, 1)
        >>> theta = problem.initial_parameters()
        >>> am.adaptation_curve(problem, theta, am.TaskBatch(x, y, x, y), inner_lr=0.1, steps=[0, 5]).errors.shape
        torch.Size([8, 2])
    """
    positive_number("inner_lr", inner_lr)
    listed = list(steps) if isinstance(steps, Iterable) else [steps]
    wanted = sorted(set(listed)) if all(isinstance(one, Integral) for one in listed) else []
    if not wanted or wanted[0] < 0:
        raise InputError(f"steps={steps!r} must name whole numbers of steps, at least one, 0 or more.")
    if not isinstance(problem, MetaProblem) or not isinstance(tasks, TaskBatch):
        raise InputError(
            f"adaptation_curve takes a MetaProblem, theta and a TaskBatch, not a {_told(problem)} and a {_told(tasks)}."
        )
    query_mask = tasks.query_mask if query_mask is None else query_mask
    examples = list(tree_leaves(tasks.query_y)[0].shape[:2])
    if query_mask is not None and _told(query_mask) != examples:
        raise InputError(f"query_mask is {_told(query_mask)}; it needs a tensor of shape {examples}, as query_y.")
    problem.check_theta(theta)
    size = problem.chunk_size or len(tasks)
    masks = [None] * len(tasks) if query_mask is None else list(query_mask.split(size))

    def curve(problem: MetaProblem, chunk: TaskBatch, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        inner, there = InnerProblem(problem, theta, chunk), []
        x, y = (chunk.query_x, chunk.query_y) if mask is None else filled((chunk.query_x, chunk.query_y, mask))[:2]
        u, h = inner.start(), theta.new_full((len(chunk), 1), inner_lr)
        for before, after in pairwise([0, *wanted]):
            for count in pieces(after - before, inner.per_call() or 1) if after > before else []:
                (u,) = inner.run(Descend(count), u, h)
            with torch.no_grad():
                found = (measure or rmse)(problem.predict(u, x), y, mask)
            if _told(found) != [len(chunk)]:
                raise InputError(f"measure returned {_told(found)}; it must return a number a task, [{len(chunk)}].")
            there.append(found)
        return torch.stack(there, 1), u

    pairs = zip(tasks.chunks(size), masks, strict=False)
    done = [problem.unspoiled(partial(curve, chunk=chunk, mask=mask)) for chunk, mask in pairs]
    errors, adapted = (torch.cat(parts) for parts in zip(*done, strict=True))
    return AdaptationCurve(tuple(wanted), errors, adapted)


def rmse(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Float[Tensor, " tasks"]:
    """The root-mean-square error of each task, ``[B]``, over its examples and outputs; NaN where none count."""
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor) or prediction.shape != target.shape:
        raise InputError(
            f"rmse compares predictions {_told(prediction)} with targets {_told(target)}, which must be tensors of one "
            "shape; pass measure=am.accuracy for class labels, or a measure of your own."
        )
    return _mean((prediction - target).square(), mask).sqrt()


def accuracy(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Float[Tensor, " tasks"]:
    """The share of examples of each task, ``[B]``, whose largest output is that of their class."""
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor) or prediction.shape[:-1] != target.shape:
        raise InputError(
            f"accuracy compares outputs [..., classes], here {_told(prediction)}, with class labels of the same shape "
            f"without the last axis, here {_told(target)}; mend either, or pass a measure of your own."
        )
    return _mean((prediction.argmax(-1) == target).to(prediction.dtype), mask)


def target_std(target: Tensor, mask: Tensor | None = None) -> Float[Tensor, " tasks"]:
    """The (population) standard deviation of each task's targets, ``[B]``: what its own mean as a guess would err."""
    mean = _mean(target.to(torch.result_type(target, 1.0)), mask)
    return _mean((target - mean.view(-1, *[1] * (target.ndim - 1))).square(), mask).sqrt()


def nrmse(errors: Tensor, scale: Tensor | float) -> Tensor:
    """Root-mean-square errors over a scale that goes by a name: the range of the targets, a standard deviation, ….

    A task whose scale is zero has no such error: it is NaN there, to be left out and counted.
    """
    scale = torch.as_tensor(scale, dtype=errors.dtype, device=errors.device)
    return torch.where(scale > 0, errors / scale, torch.nan)


def _told(value: object) -> object:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.flatten(1).mean(1)
    weights = mask.view(*mask.shape, *[1] * (values.ndim - 2)).expand_as(values).to(values.dtype)
    return (values * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)
