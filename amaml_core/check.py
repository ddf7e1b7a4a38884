"""A user's model against plain torch: its derivatives, and that nothing of it or of the data is changed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from amaml_core.differences import product_error, slope_error
from amaml_core.errors import InputError
from amaml_core.inner import InnerProblem
from amaml_core.looked import Looked
from amaml_core.mistakes import MISTAKES
from amaml_core.modules import tensors
from amaml_core.plain import Plain, written
from amaml_core.problem import MetaProblem
from amaml_core.tasks import TaskBatch, Tree

TASKS = 2  # whose derivatives are held against central differences
# relative errors that are too large: of gradients against torch.autograd, of slopes and products against differences
TOLERANCE = {torch.float64: (1e-7, 1e-4, 1e-3), torch.float32: (1e-3, 5e-2, 5e-2)}


@dataclass(frozen=True)
class Check:
    """How far a problem's derivatives are from what they should be, each relative, the largest that was found.

    Attributes:
        autograd_error: each task's gradient against torch.autograd of the plain module.
        slope_error: the plain module's gradient against central differences of its loss.
        product_error: Hessian-vector products against central differences of the plain module's gradient; None where
            the loss has no second derivative.
        dtype: in which this was measured: float64, or the model's where it or its loss holds tensors of its own dtype.
        notes: sentences about what could not be checked, and how the model is called.
    """

    autograd_error: float
    slope_error: float
    product_error: float | None
    dtype: torch.dtype
    notes: tuple[str, ...] = ()


@torch.inference_mode(False)
def check(problem: MetaProblem, theta: Float[Tensor, " params"], tasks: TaskBatch) -> Check:
    """Hold a problem's own derivatives against the plain module, without vmap, functional_call or our code.

    The module itself is called, in float64 where it can be, on cloned data, with the parameters written into it; it is
    as before afterwards. What is compared is the gradient and a Hessian-vector product against central differences,
    and each task's gradient against ``torch.autograd``. Where the gradient is exactly zero nothing is compared with
    differences: torch holds a padding row, and what is detached, and so do we.

    Args:
        problem: model and losses.
        theta: near which it is checked, ``[d]``.
        tasks: all of them are compared with ``torch.autograd``, two with differences.

    Raises:
        InputError: a derivative is off, two calls differ, or a call changes the data or the model. It names which
            check, how far off, and the usual causes.

    Example:
        >>> import torch, amaml_core as am
        >>> problem = am.MetaProblem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
        >>> x, y = torch.randn(4, 10, 2), torch.randn(4, 10, 1)
        >>> am.check(problem, problem.initial_parameters(), am.TaskBatch(x, y, x, y)).dtype
        torch.float64
    """
    problem.check_theta(theta)
    problem = problem.with_engine("eager")
    _check_promises(problem, theta, tasks)
    dtype, notes = torch.float64, ()
    try:
        with written(problem.model, problem.names, (problem.inner_loss, problem.outer_loss), dtype) as plain:
            found = _compare(problem, plain, theta, tasks)
    except _DtypeError as error:
        dtype = theta.dtype
        notes = (f"Model or loss hold tensors of their own dtype ({error}): checked in {dtype}, and less closely.",)
        with written(problem.model, problem.names, (problem.inner_loss, problem.outer_loss), dtype) as plain:
            found = _compare(problem, plain, theta, tasks)
    return Check(*found, dtype, (*problem.notes, *notes))


class _DtypeError(Exception):
    """Model or loss hold tensors of their own dtype."""


def _check_promises(problem: MetaProblem, theta: Tensor, tasks: TaskBatch) -> None:
    """Two calls give the same bits, and neither data nor model change."""
    data = {name: value.clone() for name, value in tasks.tensors().items()}
    state = {name: value.clone() for name, value in tensors(problem.model).items()}
    inner = InnerProblem(problem, theta, tasks)
    first, second = (torch.cat([inner.gradient(inner.start()), inner.query_gradient(inner.start())[1]]) for _ in "12")
    if not torch.equal(first, second) and not (first.is_cuda and torch.allclose(first, second)):
        if bool(torch.isfinite(first).all()):
            raise InputError(
                f"Two calls give gradients {_off(second, first):.0%} apart; draw no random numbers in model or loss, "
                "and keep no state in them."
            )
        raise InputError("The gradient at theta is not finite; mend the model, the loss or the start.")
    for kept, now in ((data, tasks.tensors()), (state, tensors(problem.model))):
        if changed := [name for name, value in kept.items() if not torch.equal(value, now[name])]:
            raise InputError(f"A call of the model changes {changed[0]}; compute a changed copy instead.")


def _compare(problem: MetaProblem, plain: Plain, theta: Tensor, tasks: TaskBatch) -> tuple[float, float, float | None]:
    dtype = plain.parameters[0].dtype
    too_far = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    mine = copy.copy(problem)
    mine.inner_loss, mine.outer_loss, mine._looked = *plain.losses, Looked()
    start, tasks = theta.detach().to(dtype), tasks.to(dtype=dtype)
    ripple = torch.cos(torch.arange(len(start), dtype=dtype, device=start.device))
    start = start + 1e-3 * (start.square().mean().sqrt() + 1e-2) * ripple  # off the kinks that zeros lie on
    try:
        found = plain.loss_at(plain.losses[0], _one(tasks.support, 0), start).dtype
    except MISTAKES as error:
        if "dtype" in str(error) or "expected scalar type" in str(error):
            raise _DtypeError(str(error).splitlines()[0]) from error
    else:
        if dtype == torch.float64 != found:
            raise _DtypeError(f"the loss is {found}")
    inner = InnerProblem(mine, start, tasks)
    gradients = inner.gradient(inner.start()), inner.query_gradient(inner.start())[1]
    worst_gradient = worst_slope = 0.0
    for number, (which, data) in enumerate((("inner", tasks.support), ("outer", tasks.query))):
        for task in range(len(tasks)):
            own, found = plain.gradient(plain.losses[number], _one(data, task), start), gradients[number][task]
            off = _off(found, own)
            worst_gradient = max(worst_gradient, off)
            if not off <= too_far[0]:
                raise InputError(
                    f"Task {task}'s gradient of the {which} loss is {off:.1%} off torch.autograd of the model itself; "
                    "usual causes: the model or the loss keeps or closes over tensors of its own that it writes to, or "
                    "branches on what it was called with."
                )
            if task >= TASKS:
                continue
            value = partial(plain.loss_at, plain.losses[number], _one(data, task))
            off = slope_error(value, own, start, enough=too_far[1], seed=task)
            worst_slope = max(worst_slope, off)
            if not (off <= too_far[1] or inner.manners[number].detached):  # which is told
                raise InputError(
                    f"The gradient of the {which} loss is {off:.1%} off central differences of the model itself; usual "
                    "causes: detach(), .data or no_grad in the model or the loss, a straight-through estimator, or an "
                    "autograd function whose backward is wrong."
                )
    if inner.manners[0].first_order:
        return worst_gradient, worst_slope, None
    worst_product = 0.0
    for task in range(min(TASKS, len(tasks))):
        alone = InnerProblem(mine, start, tasks[task : task + 1])
        point = alone.linearize(alone.start())
        data = _one(tasks.support, task)
        off = product_error(
            partial(plain.gradient, plain.losses[0], data),
            lambda v, point=point: point.hvp(v.unsqueeze(0)).squeeze(0),
            start,
            enough=too_far[2],
            seed=task,
        )
        worst_product = max(worst_product, off)
        if not off <= too_far[2]:
            raise InputError(
                f"A Hessian-vector product of the inner loss is {off:.1%} off central differences of the model's own "
                "gradient; usual causes: an autograd function whose backward is not differentiable (NumPy, .data, "
                "detach, once_differentiable), or parts that run again on the way back, as in torch.utils.checkpoint."
            )
    return worst_gradient, worst_slope, worst_product


def _one(data: tuple[Tree, ...], task: int) -> tuple[Tree, ...]:
    return tree_map(lambda value: value[task], data)


def _off(value: Tensor, right: Tensor) -> float:
    size = right.norm().clamp_min(torch.finfo(right.dtype).tiny)
    return float((value - right).norm() / size)
