"""How a model has to be called, found out by one look at it: what it writes to, what it draws, what vmap changes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map

from amaml_core.differences import disagreements
from amaml_core.errors import InputError, first_line
from amaml_core.surroundings import by_parts, compiles, put_back, random_state, snapshot

ROWS = 2  # tasks that are looked at: the second shows what a batching rule does for the first alone
# relative to the size of what is compared: far above rounding, and far below the faults that were seen (6 % and more)
AGREES = {torch.float64: 1e-7, torch.float32: 1e-2}
ROUGHLY = 0.1  # in half precision
HOOKED = "saved tensors are packed"
TOO_FAR = 1e-2  # of derivatives from central differences in float64
# operators of attention and of weight norm, of which the second derivative is missing or wrong
FUSED = ("ScaledDotProduct", "WeightNormInterface")
CUSTOM = "an autograd function of one's own"
PADDED = "an embedding with a padding"

Itself = Callable[[Tensor, Any], Tensor | None]
"""(u ``[d]``, data of one task) -> the gradient of the module as it is, ``[d]``; None where it remembers its calls."""
Call = Callable[["Manner", Tensor, Any], Tensor]
"""(manner, u ``[B, d]``, data of B tasks) -> losses ``[B]``"""


@dataclass
class Manner:
    """How a model and its loss are called.

    Attributes:
        batched: all tasks at once, by vmap; else one after the other, as torch's own operators would be called.
        copies_data: the data are handed over as copies, for they are written to.
        copies_frozen: so are buffers and what is not adapted.
        copies_model: a copy of the model holds the parameters, for parts of it run again on the way back.
        restores: attributes that a call leaves in the modules are taken out again.
        by_parts: fused operators are avoided that cannot be differentiated twice, or wrongly.
        eager: what ``torch.compile`` made runs as it was written: it looks through neither vmap nor a double backward.
        first_order: why there is no second derivative; empty where there is one.
        why: why the tasks are not worked on at once, though that would be quicker.
        detached: how far the gradient is from central differences because something in the model is detached.
        sure: whether the numbers were finite, so that derivatives could be checked.
    """

    batched: bool = False
    copies_data: bool = False
    copies_frozen: bool = False
    copies_model: bool = False
    restores: bool = False
    by_parts: bool = False
    eager: bool = False
    first_order: str = ""
    why: str = ""
    sure: bool = True
    detached: float = 0.0

    @contextmanager
    def around(self, model: nn.Module) -> Iterator[None]:
        """What is set while the model is called."""
        kept = snapshot(model) if self.restores else {}
        with (
            by_parts() if self.by_parts else nullcontext(),
            torch.compiler.set_stance("force_eager") if self.eager else nullcontext(),
        ):
            try:
                yield
            finally:
                put_back(kept)


def look(
    call: Call,
    exact: Call,
    itself: Itself,
    model: nn.Module,
    loss: Any,
    frozen: Mapping[str, Tensor],
    u: Tensor,
    data: Any,
    vmaps: bool,
) -> Manner:
    """One look at a model: its losses on two tasks, with two derivatives, one task after the other and by vmap.

    The derivatives of the first task are held against central differences in float64, whoever wrote them: torch's own
    are not always right. Where model or loss hold tensors of their own dtype this is left out.

    Args:
        call: with ``frozen`` in the place of the model's own; writes to nothing else of the caller's but ``data``.
        exact: the same in float64.
        itself: the module itself, see ``Itself``.
        model: whose attributes are watched.
        loss: that is called with it.
        frozen: copies of what is not adapted, by name.
        u: ``[B, d]``.
        data: tree of tensors, each ``[B, ...]``.
        vmaps: whether vmap is wanted where it is right.

    Raises:
        InputError: the loss depends on random numbers or on how often it was asked for, its parameters are written to,
            or it or its derivative cannot be worked out, or is wrong.
    """
    start, u, data = _examples(u), _rows(u), tree_map(_examples, data)
    manner = Manner(eager=compiles(model, loss))
    kept = snapshot(model)
    try:
        manner = _memory(call, manner, model, frozen, u, data)
        plain = _derivatives(lambda at: call(manner, at, tree_map(torch.clone, data)), u)
        if any(part in name for name in plain.nodes for part in FUSED):
            manner = replace(manner, by_parts=True)
            plain = _derivatives(lambda at: call(manner, at, tree_map(torch.clone, data)), u)
        _agree(itself, u, data, plain)
        manner = _judged(exact, manner, u, data, plain)
    finally:
        changed = put_back(kept)
    manner = replace(manner, restores=changed)
    if not vmaps or manner.copies_model:
        return manner
    if PADDED in plain.nodes:
        return replace(manner, why="vmap does not spare the padding of an embedding from the gradient in every task")
    return _batched(call, manner, u, start, data, plain)


def _agree(itself: Itself, u: Tensor, data: Any, plain: Derivatives) -> None:
    """Refuse a model that is another one when it is called with other parameters than it holds."""
    own = itself(u[0], tree_map(lambda value: value[0], data))
    if own is None:
        raise InputError(
            "Each call of the model changes the next result; put it into eval mode, or keep no state in it."
        )
    off = float((plain.first[0] - own).norm() / own.norm().clamp_min(torch.finfo(own.dtype).tiny))
    if off > AGREES.get(own.dtype, ROUGHLY) / 10:
        raise InputError(
            f"The gradient is {off:.1%} off torch.autograd of the module itself; usual causes: the model, a hook or "
            "the loss holds its parameters apart from the modules (read them from the model each time), a hook on a "
            "parameter changes its gradient, or results are kept from call to call."
        )


def _judged(exact: Call, manner: Manner, u: Tensor, data: Any, plain: Derivatives) -> Manner:
    """The same manner, with what central differences in float64 say of the derivatives of one task.

    Raises:
        InputError: an autograd function of somebody's gives a wrong gradient.
    """
    manner = replace(manner, first_order=plain.why)
    one, own = (
        tree_map(lambda value: value[:1].double() if value.is_floating_point() else value[:1], part)
        for part in (u, data)
    )

    def value(at: Tensor) -> Tensor:
        found = exact(manner, at, tree_map(torch.clone, own)).sum()
        if found.dtype != torch.float64:
            raise TypeError(found.dtype)
        return found

    try:
        slope, product = disagreements(value, one, TOO_FAR)
    except InputError:
        raise
    except (RuntimeError, TypeError):  # it wants its own dtype
        return manner
    if math.inf in (slope, product):  # of numbers that are not finite nothing can be said
        return replace(manner, sure=False)
    if slope > TOO_FAR:
        if CUSTOM in plain.nodes:
            raise InputError(
                f"The gradient of model and loss is {slope:.0%} off central differences of the loss itself, and an "
                "autograd function of your own has a part in it; correct its backward."
            )
        manner = replace(manner, detached=slope)
    if plain.second is None or product <= TOO_FAR:
        return manner
    return replace(
        manner, first_order=f"its Hessian-vector products are {product:.0%} off central differences of the gradient"
    )


def _batched(call: Call, manner: Manner, u: Tensor, start: Tensor, data: Any, plain: Derivatives) -> Manner:
    """The same manner by vmap, where that gives the same."""
    together = replace(manner, batched=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="There is a performance drop")  # a loop, and a slow one
            found = _derivatives(lambda at: call(together, at, tree_map(torch.clone, data)), u)
            # at the start itself too, where zeros may tie
            tied, right = (
                _gradient(lambda at, m=m: call(m, at, tree_map(torch.clone, data)), start) for m in (together, manner)
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever vmap cannot do
        return replace(manner, why=f"vmap cannot ({first_line(error)})")
    if found.second is None and plain.second is not None:
        return replace(manner, why=f"vmap has no second derivative ({found.why})")
    for mine, own in [(tied, right), *zip(found.tensors(), plain.tensors(), strict=False)]:
        if bool(torch.isfinite(own).all()) and not _close(mine, own):
            return replace(manner, why="vmap gives other values or derivatives than torch's own operators")
    return together


def _memory(call: Call, manner: Manner, model: nn.Module, frozen: Mapping[str, Tensor], u: Tensor, data: Any) -> Manner:
    """What two calls write to, and whether the second one knows of the first."""
    drawn, kept = random_state(u), snapshot(model)
    pristine = {name: value.clone() for name, value in frozen.items()}
    once = tree_map(torch.clone, data)
    start = u.clone()
    with torch.enable_grad():  # what recomputes does so only where there is something to differentiate
        u.requires_grad_()
        first, manner = _first(call, manner, u, once)
        if any(not torch.equal(a, b) for a, b in zip(tree_leaves(once), tree_leaves(data), strict=True)):
            manner = replace(manner, copies_data=True)
        written = [name for name, value in frozen.items() if not torch.equal(value, pristine[name])]
        second = call(manner, u, tree_map(torch.clone, data)).detach()
        put_back(kept)
        for name, value in frozen.items():
            if name in written:
                value.detach().copy_(pristine[name])
        turned = call(manner, u.flip(0), tree_map(lambda value: value.flip(0), data)).detach().flip(0)
        u.requires_grad_(False)
    if not torch.equal(u, start):
        raise InputError("The model writes to its own parameters in its forward pass; compute changed copies instead.")
    if drawn != random_state(u):
        raise InputError("The model draws random numbers in its forward pass; switch dropout off.")
    same = torch.equal(first, second) if not first.is_cuda else _close(first, second)  # there, sums have no fixed order
    if not same and not bool((torch.isnan(first) & torch.isnan(second)).any()):
        if written:
            raise InputError(
                f"Each call of the model changes its {written[0]!r}, and with it the next result; put that module into "
                "eval mode, or hold it fixed."
            )
        raise InputError(
            "The model or the loss gives another value each time that it is called; draw no random numbers and keep "
            "no state in it."
        )
    if same and not torch.equal(first, turned) and not _close(first, turned, 1e-3):
        raise InputError(
            "The model or the loss remembers what it was called with first; initialise it on a batch of its own "
            "before, or keep no results in it."
        )
    return replace(manner, copies_frozen=bool(written))


def _first(call: Call, manner: Manner, u: Tensor, data: Any) -> tuple[Tensor, Manner]:
    """The losses, and the manner in which they could be had."""
    try:
        with _no_hooks(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="None of the inputs have requires_grad")
            return call(manner, u, data).detach(), manner
    except UserWarning as error:
        raise InputError(
            "torch.utils.checkpoint gives a model no gradient where its input has none; call it with "
            "use_reentrant=False."
        ) from error
    except RuntimeError as error:
        if HOOKED not in str(error):
            raise
    manner = replace(manner, copies_model=True)
    return call(manner, u, data).detach(), manner


@contextmanager
def _no_hooks() -> Iterator[None]:
    """Saved tensors may not be packed, as ``torch.utils.checkpoint`` does to run parts of a model once more."""
    try:
        watched = disable_saved_tensors_hooks(HOOKED)
        watched.__enter__()
    except RuntimeError:  # somebody packs them around all of this: then nothing can be told
        yield
        return
    try:
        yield
    finally:
        watched.__exit__(None, None, None)


@dataclass(frozen=True)
class Derivatives:
    """Losses ``[B]`` at a point, their gradient and a Hessian-vector product, ``[B, d]``.

    Attributes:
        value: the losses.
        first: the gradient.
        second: the product with a fixed direction; None where there is none.
        why: there is none.
        nodes: names of those in the graph of losses and gradient.
    """

    value: Tensor
    first: Tensor
    second: Tensor | None
    why: str = ""
    nodes: frozenset[str] = frozenset()

    def tensors(self) -> list[Tensor]:
        """The value, the gradient and, where there is one, the product."""
        return [self.value, self.first, *([] if self.second is None else [self.second])]


def _gradient(losses: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        return torch.autograd.grad(losses(u).sum(), u)[0]


def _derivatives(losses: Callable[[Tensor], Tensor], u: Tensor) -> Derivatives:
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = losses(u)
        if not value.requires_grad:
            raise InputError("The loss does not depend on the adapted parameters; adapt others, or mend the model.")
        (first,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    told = Derivatives(value.detach(), first.detach(), None, nodes=_nodes(value, first))
    if "torch::autograd::Error" in told.nodes:
        return replace(told, why="an autograd function is marked as once_differentiable")
    if not first.requires_grad:
        return replace(told, second=torch.zeros_like(u))
    direction = torch.cos(torch.arange(u.numel(), dtype=u.dtype, device=u.device)).view_as(u)
    try:
        (second,) = torch.autograd.grad(first, u, direction, materialize_grads=True)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        cudnn = "; set torch.backends.cudnn.enabled = False" if "cudnn" in str(error) else ""
        return replace(told, why=first_line(error) + cudnn)
    return replace(told, second=second)


def _nodes(*results: Tensor) -> frozenset[str]:
    """The names of the nodes of a graph; with ``PADDED`` and ``CUSTOM`` where there are such."""
    waiting: list[Any] = [result.grad_fn for result in results]
    seen, names = set(), set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(node.name())
            # without one, -1 is kept as an unsigned number
            if node.name() == "EmbeddingBackward0" and node._saved_padding_idx < 2**63:
                names.add(PADDED)
            if isinstance(node, torch.autograd.function.BackwardCFunction):
                names.add(CUSTOM)
            waiting += [source for source, _ in node.next_functions]
    return frozenset(names)


def _rows(u: Tensor) -> Tensor:
    """``ROWS`` points near these, none on a kink that a special start may lie on."""
    u = u.detach()[:ROWS]
    u = u.expand(ROWS, -1) if len(u) == 1 else u
    ripple = torch.cos(torch.arange(u.numel(), dtype=u.dtype, device=u.device) + 1).view_as(u)
    return u + 1e-2 * (u.square().mean().sqrt() + 1e-2) * ripple


def _examples(value: Tensor) -> Tensor:
    value = value.detach()[:ROWS]
    return (value.expand(ROWS, *value.shape[1:]) if len(value) == 1 else value).clone()


def _close(mine: Tensor, right: Tensor, share: float = 1.0) -> bool:
    size = torch.linalg.vector_norm(right)
    return bool(torch.linalg.vector_norm(mine - right) <= share * _tolerance(right) * size)


def _tolerance(value: Tensor) -> float:
    if torch.is_autocast_enabled(value.device.type):
        return ROUGHLY
    return AGREES.get(value.dtype, ROUGHLY)
