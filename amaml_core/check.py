"""A user's model against plain torch: its derivatives, and that nothing of it or of the data is changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from amaml_core.differences import product_error, slope_error
from amaml_core.errors import InputError
from amaml_core.inner import InnerProblem
from amaml_core.manner import by_parts, put_back, snapshot
from amaml_core.modules import Loss, predict, tensors
from amaml_core.problem import MISTAKES, Looked, MetaProblem
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
        with _written(problem, dtype) as plain:
            found = _compare(problem, plain, theta, tasks)
    except _DtypeError as error:
        dtype = theta.dtype
        notes = (f"Model or loss hold tensors of their own dtype ({error}): checked in {dtype}, and less closely.",)
        with _written(problem, dtype) as plain:
            found = _compare(problem, plain, theta, tasks)
    return Check(*found, dtype, (*problem.notes, *notes))


class _DtypeError(Exception):
    pass


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


@dataclass(frozen=True)
class _Plain:
    """The module itself, with its losses.

    Attributes:
        values: (which loss, u ``[d]``, data of one task) -> the loss, differentiable in the module's parameters.
        inner_loss: in the dtype of this check.
        outer_loss: likewise.
        parameters: those that are adapted.
    """

    model: nn.Module
    inner_loss: Loss
    outer_loss: Loss
    parameters: list[nn.Parameter]
    buffers: dict[str, Tensor]

    def value(self, loss: Loss, u: Tensor, data: tuple[Tree, ...]) -> Tensor:
        """Of one task, after u ``[d]`` has been written into the module."""
        x, y, *mask = tree_map(torch.clone, data)
        kept = snapshot(self.model)
        own = dict(self.model.named_buffers())
        with torch.no_grad():
            for name, value in self.buffers.items():
                if not torch.equal(own[name], value):
                    own[name].copy_(value)
            for parameter, part in zip(self.parameters, self.parts(u), strict=True):
                parameter.copy_(part.view_as(parameter))
        with by_parts():
            try:
                prediction = predict(self.model, x)
                value = loss(prediction, y) if not mask else _masked(loss, prediction, y, mask[0])
            finally:
                put_back(kept)
        if value.dtype != u.dtype:
            raise _DtypeError(f"a loss of {value.dtype}")
        return value

    def loss_at(self, loss: Loss, data: tuple[Tree, ...], u: Tensor) -> Tensor:
        """Of one task, a 0-d tensor without its graph."""
        return self.value(loss, u, data).detach()

    def gradient(self, loss: Loss, data: tuple[Tree, ...], u: Tensor) -> Tensor:
        """Of one task, ``[d]``."""
        with torch.enable_grad():
            value = self.value(loss, u, data)
            grads = torch.autograd.grad(value, self.parameters, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(self.parameters, grads, strict=True)]
        )

    def parts(self, u: Tensor) -> tuple[Tensor, ...]:
        """U cut into the parameters."""
        return u.split([parameter.numel() for parameter in self.parameters])


def _masked(loss: Loss, prediction: Tree, y: Tree, mask: Tensor) -> Tensor:
    """The mean over the examples that count, of each one's own loss."""
    each = [
        loss(*tree_map(lambda value, i=i: value[i : i + 1], (prediction, y))) for i in mask.nonzero().flatten().tolist()
    ]
    return torch.stack(each).mean()


@contextmanager
def _written(problem: MetaProblem, dtype: torch.dtype) -> Iterator[_Plain]:
    """The module itself in a dtype, its parameters and buffers replaced by copies; as it was afterwards."""
    model = problem.model
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    before = {name: (value.data, value.requires_grad, value.grad) for name, value in parameters.items()}
    holders = [
        (module, name) for module in model.modules() for name in module._buffers if module._buffers[name] is not None
    ]
    kept = [module._buffers[name] for module, name in holders]
    cast = lambda value: value.detach().clone().to(dtype if value.is_floating_point() else None)  # noqa: E731
    try:
        for name, value in parameters.items():
            value.data = cast(value)
            value.requires_grad_(name in problem.names)
        new = {id(value): cast(value) for value in buffers.values()}
        for module, name in holders:
            module._buffers[name] = new[id(module._buffers[name])]
        inner, outer = (
            copy.deepcopy(loss).to(dtype) if isinstance(loss, nn.Module) else loss
            for loss in (problem.inner_loss, problem.outer_loss)
        )
        own = {name: value.clone() for name, value in model.named_buffers()}
        yield _Plain(model, inner, outer, [parameters[name] for name in problem.names], own)
    finally:
        for name, (data, wanted, grad) in before.items():
            parameters[name].data = data
            parameters[name].requires_grad_(wanted)
            parameters[name].grad = grad
        for (module, name), value in zip(holders, kept, strict=True):
            module._buffers[name] = value


def _compare(problem: MetaProblem, plain: _Plain, theta: Tensor, tasks: TaskBatch) -> tuple[float, float, float | None]:
    dtype = plain.parameters[0].dtype
    too_far = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    mine = copy.copy(problem)
    mine.inner_loss, mine.outer_loss, mine._looked = plain.inner_loss, plain.outer_loss, Looked()
    start, tasks = theta.detach().to(dtype), tasks.to(dtype=dtype)
    ripple = torch.cos(torch.arange(len(start), dtype=dtype, device=start.device))
    start = start + 1e-3 * (start.square().mean().sqrt() + 1e-2) * ripple  # off the kinks that zeros lie on
    try:
        plain.value(plain.inner_loss, start, _one(tasks.support, 0))
    except MISTAKES as error:
        if "dtype" in str(error) or "expected scalar type" in str(error):
            raise _DtypeError(str(error).splitlines()[0]) from error
    inner = InnerProblem(mine, start, tasks)
    gradients = {"inner": inner.gradient(inner.start()), "outer": inner.query_gradient(inner.start())[1]}
    losses = {"inner": plain.inner_loss, "outer": plain.outer_loss}
    worst_gradient = worst_slope = 0.0
    for which, data in (("inner", tasks.support), ("outer", tasks.query)):
        for task in range(len(tasks)):
            own, found = plain.gradient(losses[which], _one(data, task), start), gradients[which][task]
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
            value = partial(plain.loss_at, losses[which], _one(data, task))
            off = slope_error(value, own, start, enough=too_far[1], seed=task)
            worst_slope = max(worst_slope, off)
            if not off <= too_far[1]:
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
            partial(plain.gradient, plain.inner_loss, data),
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
