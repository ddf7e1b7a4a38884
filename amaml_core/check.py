"""A user's model against plain torch: its derivatives, and that nothing of it or of the data is changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from amaml_core.differences import beside, off, product_error, repeats, slope_error
from amaml_core.engine.threads import one_at_a_time
from amaml_core.errors import InputError, first_line, percent
from amaml_core.inner import InnerProblem
from amaml_core.looked import Looked
from amaml_core.mistakes import MISTAKES
from amaml_core.modules import tensors
from amaml_core.plain import Plain, written
from amaml_core.problem import MetaProblem
from amaml_core.surroundings import same
from amaml_core.tasks import TaskBatch, Tree

TASKS = 2  # whose derivatives are held against central differences
# relative errors that are too large: of gradients against torch.autograd, of slopes and products against differences
TOLERANCE = {torch.float64: (1e-7, 1e-4, 1e-3), torch.float32: (1e-3, 5e-2, 5e-2)}
AUTOGRAD = (
    "torch.autograd of the model itself; usual causes: the model or the loss keeps or closes over tensors of its own "
    "that it writes to, or branches on what it was called with."
)
SLOPE = (
    "central differences of the model itself; usual causes: detach(), .data or no_grad in the model or the loss, a "
    "straight-through estimator, or an autograd function whose backward is wrong."
)
PRODUCT = (
    "central differences of the model's own gradient; usual causes: an autograd function whose backward is not "
    "differentiable (NumPy, .data, detach, once_differentiable), or parts that run again on the way back, as in "
    "torch.utils.checkpoint."
)


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
        InputError: a derivative is off, two calls differ, a call changes the data or the model, or a float64 model
            holds tensors of another dtype. It names which check, how far off, and the usual causes.

    Example:
        >>> import torch, amaml_core as am
        >>> problem = am.MetaProblem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
        >>> x, y = torch.randn(4, 10, 2), torch.randn(4, 10, 1)
        >>> am.check(problem, problem.initial_parameters(), am.TaskBatch(x, y, x, y)).dtype
        torch.float64
    """
    if not isinstance(problem, MetaProblem) or not isinstance(tasks, TaskBatch):
        given = type(problem).__name__, type(tasks).__name__
        raise InputError(f"check takes a MetaProblem, theta and a TaskBatch, not a {given[0]} and a {given[1]}.")
    problem.check_theta(theta)
    with one_at_a_time:  # it writes into the model, which others may use
        return problem.with_engine("eager").unspoiled(lambda mine: _checked(mine, theta, tasks))


def _checked(problem: MetaProblem, theta: Tensor, tasks: TaskBatch) -> Check:
    _check_promises(problem, theta, tasks)
    plainly = partial(written, problem.model, problem.names, (problem.inner_loss, problem.outer_loss))
    dtype, notes = torch.float64, problem.notes
    with plainly(dtype) as plain:
        own = _own_dtype(plain, theta.to(dtype), tasks.to(dtype=dtype))
    if own:
        if theta.dtype == dtype:
            raise InputError(f"Model or loss hold tensors of another dtype than {dtype} ({own}); convert them to it.")
        dtype = theta.dtype
        told = f"Model or loss hold tensors of their own dtype ({own}): checked in {dtype}, and less closely."
        notes = (*notes, told)
    with plainly(dtype) as plain:
        return Check(*_compare(problem, plain, theta.detach().to(dtype), tasks.to(dtype=dtype)), dtype, notes)


def _check_promises(problem: MetaProblem, theta: Tensor, tasks: TaskBatch) -> None:
    """Two calls give the same bits, and neither data nor model change."""
    data = {name: value.clone() for name, value in tasks.tensors().items()}
    state = {name: value.clone() for name, value in tensors(problem.model).items()}
    inner = InnerProblem(problem, theta, tasks)
    first, second = (torch.cat([inner.gradient(inner.start()), inner.query_gradient(inner.start())[1]]) for _ in "12")
    if not bool(torch.isfinite(first).all()):
        raise InputError("The gradient at theta is not finite; mend the model, the loss or the start.")
    if not repeats(first, second):
        raise InputError(
            f"Two calls give gradients {off(second, first):.0%} apart; draw no random numbers in model or loss, and "
            "keep no state in them."
        )
    for kept, now in ((data, tasks.tensors()), (state, tensors(problem.model))):
        if changed := [name for name, value in kept.items() if not same(value, now[name])]:
            raise InputError(f"A call of the model changes {changed[0]}; compute a changed copy instead.")


def _own_dtype(plain: Plain, u: Tensor, tasks: TaskBatch) -> str:
    """How model or inner loss tell that they cannot be had in the dtype of u; empty where they can."""
    try:
        found = plain.value(plain.losses[0], _one(tasks.support, 0), u).dtype
    except MISTAKES as error:
        return first_line(error) if "dtype" in str(error) or "expected scalar type" in str(error) else ""
    return "" if found == u.dtype else f"the loss is {found}"


def _compare(problem: MetaProblem, plain: Plain, u: Tensor, tasks: TaskBatch) -> tuple[float, float, float | None]:
    near, sloped, curved = TOLERANCE.get(u.dtype, TOLERANCE[torch.float32])
    # the plain module's own buffers, which its calls may write to, are nobody's
    inside, outside = plain.losses
    mine = problem._but(inner_loss=inside, outer_loss=outside, _looked=Looked(all_tasks=True), _handed=None)
    start = beside(u, 1e-3)
    inner = InnerProblem(mine, start, tasks)
    found = inner.gradient(inner.start()), inner.query_gradient(inner.start())[1]
    gradients, slopes, products = [0.0], [0.0], [0.0]
    for number, (which, data) in enumerate((("inner", tasks.support), ("outer", tasks.query))):
        loss = plain.losses[number]
        for task in range(len(tasks)):
            one = _one(data, task)
            own = plain.gradient(loss, one, start)
            error = off(found[number][task], own)
            gradients.append(_held(error, near, f"Task {task}'s gradient of the {which} loss", AUTOGRAD))
            if task < TASKS:
                error = slope_error(partial(plain.value, loss, one), own, start, enough=sloped, seed=task)
                most = inf if inner.manners[number].detached else sloped  # which is told
                slopes.append(_held(error, most, f"The gradient of the {which} loss", SLOPE))
    if inner.manners[0].first_order:
        return max(gradients), max(slopes), None
    for task in range(min(TASKS, len(tasks))):
        alone = InnerProblem(mine, start, tasks[task : task + 1])
        hvp = alone.linearize(alone.start()).hvp
        gradient = partial(plain.gradient, plain.losses[0], _one(tasks.support, task))
        error = product_error(gradient, lambda v, hvp=hvp: hvp(v[None])[0], start, enough=curved, seed=task)
        products.append(_held(error, curved, "A Hessian-vector product of the inner loss", PRODUCT))
    return max(gradients), max(slopes), max(products)


def _held(error: float, most: float, what: str, right: str) -> float:
    if not error <= most:
        raise InputError(f"{what} is {percent(error)} off {right}")
    return error


def _one(data: tuple[Tree, ...], task: int) -> tuple[Tree, ...]:
    return tree_map(lambda value: value[task], data)
