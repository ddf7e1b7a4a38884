"""How a model has to be called, found out by one look at it: what it writes to, what it draws, what vmap changes."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map

from amaml_core.differences import beside, disagreements, gradient_at, off, ripple
from amaml_core.errors import InputError, first_line, percent
from amaml_core.masks import count_alone
from amaml_core.mistakes import DRAWS, WRITES
from amaml_core.surroundings import by_parts, compiles, put_back, random_state, same, snapshot

ROWS = 2  # tasks that are looked at: the second shows what a batching rule does for the first alone
# relative to the size of what is compared: far above rounding, and far below the faults that were seen (6 % and more)
AGREES = {torch.float64: 1e-7, torch.float32: 1e-2}
CLOSELY = 1e-6  # what is worked out in float64, but may have parts in float32
ROUGHLY = 0.1  # in half precision
HOOKED = "saved tensors are packed"
TOO_FAR = 1e-2  # of derivatives from central differences in float64
# operators of attention and of weight norm, of which the second derivative is missing or wrong
FUSED = ("ScaledDotProduct", "WeightNormInterface")
HOOK = "BackwardHookFunctionBackward"  # torch's own, of register_full_backward_hook
CUSTOM = "an autograd function of one's own"
# what vmap is not asked for, though two tasks may not show that it gives something else, and why
PADDED = "vmap does not spare the padding of an embedding from the gradient in every task"
TIES = "vmap gives all of the gradient to one of the elements that tie in a max, min or median of everything"
SHARED = {"MaxBackward1", "MinBackward1", "MedianBackward0", "NanmedianBackward0"}  # of all elements; torch shares

# nodes whose derivative jumps; abs, clamp and maxima have a part in what is smooth too (softsign, logsumexp)
KINKED = re.compile(
    "(Relu|LeakyRelu|PreluKernel|RreluWithNoise|Hard(tanh|sigmoid|swish|shrink)|Softshrink|Threshold|Sort|Topk|Median"
    "|Nanmedian|Kthvalue|MaxPool.*|AdaptiveMaxPool.*|FractionalMaxPool.*|Multi.*MarginLoss.*)Backward[0-9]*"
)

Itself = Callable[[Tensor, Any], Tensor | None]
"""(u ``[d]``, data of one task) -> the gradient of the module as it is, ``[d]``; None where it remembers its calls."""
Call = Callable[["Manner", Tensor, Any], Tensor]
"""(manner, u ``[B, d]``, data of B tasks) -> losses ``[B]``"""


@dataclass
class Manner:
    """How a model and its loss are called."""

    batched: bool = False  # all tasks at once, by vmap; else one after the other, as torch's own operators would be
    copies_data: bool = False  # the data are handed over as copies, for they are written to
    copies_frozen: bool = False  # so are buffers and what is not adapted
    copies_model: bool = False  # a copy of the model holds the parameters, for parts of it run again on the way back
    restores: bool = False  # attributes that a call leaves in the modules are taken out again
    by_parts: bool = False  # fused operators are avoided that cannot be differentiated twice, or wrongly
    eager: bool = False  # what torch.compile made runs as it was written: it sees neither vmap nor a double backward
    first_order: str = ""  # why there is no second derivative; empty where there is one
    why: str = ""  # why the tasks are not worked on at once, though that would be quicker
    sure: bool = True  # whether the numbers were finite, so that derivatives could be checked
    shapes: str = ""  # of the data that were looked at
    kinked: bool = False  # whether its derivative jumps, as that of ReLU and max-pooling does
    detached: float = 0.0  # how far the gradient is from central differences because something is detached

    @contextmanager
    def around(self, model: nn.Module, loss: Any) -> Iterator[None]:
        """What is set while they are called."""
        with ExitStack() as stack:
            if self.restores:
                stack.callback(put_back, snapshot(model, loss))
            if self.by_parts:
                stack.enter_context(by_parts())
            if self.eager:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield


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
    rows: int = ROWS,
) -> Manner:
    """One look at a model: its losses on so many tasks, with two derivatives, one task after the other and by vmap.

    The derivatives of the first task are held against central differences in float64 (``exact``), whoever wrote them:
    torch's own are not always right. Where model or loss hold tensors of their own dtype this is left out. A call uses
    ``frozen``, copies of what is not adapted, and writes to nothing else of the caller's but ``data``, a tree of
    tensors ``[B, ...]``. Whether vmap is wanted where it is right is ``vmaps``.

    Raises:
        InputError: the loss depends on random numbers or on how often it was asked for, its parameters are written to,
            or it or its derivative cannot be worked out, or is wrong.
    """
    # the start as it lies in memory: expanded
    start, data = _rows(u, rows), tree_map(lambda value: _rows(value, rows).clone(), data)
    u = beside(start, 1e-2)
    manner, kept = Manner(eager=compiles(model, loss)), snapshot(model, loss)
    manner.shapes = shapes(data)
    try:
        _remember(call, manner, (model, loss), frozen, u, data)
        count_alone(partial(call, manner), u, data, _close)
        plain = _derivatives(call, manner, u, data)
        if any(part in name for name in plain.nodes for part in FUSED):
            manner.by_parts = True
            plain = _derivatives(call, manner, u, data)
        manner.kinked = any(map(KINKED.fullmatch, plain.nodes))
        _agree(exact, itself, manner, u, data, plain)
        _judge(exact, manner, u, data, plain)
    finally:
        manner.restores = put_back(kept)
    if vmaps and not manner.copies_model:
        manner.why = _why_not_at_once(call, manner, u, start, data, plain)
        manner.batched = not manner.why
    return manner


def _agree(exact: Call, itself: Itself, manner: Manner, u: Tensor, data: Any, plain: Derivatives) -> None:
    """Refuse a model that is another one when it is called with other parameters than it holds."""
    own = itself(u[0], tree_map(lambda value: value[0], data))
    if own is None:
        raise InputError(
            "Each call of the model changes the next result; put it into eval mode, or keep no state in it."
        )
    mine, most = plain.first[0], AGREES.get(own.dtype, ROUGHLY) / 10
    if u.dtype != torch.float64:  # where rounding hides nothing, if that can be had: a weight decay is small
        wide, there = _widened(u), _widened(data)
        with suppress(RuntimeError, TypeError):
            found = gradient_at(lambda at: exact(manner, at, tree_map(torch.clone, there)).sum(), wide)[1][0]
            right = itself(wide[0], tree_map(lambda value: value[0], there))
            if right is not None and bool(torch.isfinite(right).all()):
                mine, own, most = found, right, CLOSELY
    if (error := off(mine, own)) > most:
        raise InputError(
            f"The gradient is {percent(error)} off torch.autograd of the module itself; usual causes: the model, a "
            "hook or the loss holds its parameters apart from the modules (read them from the model each time), a hook "
            "on a parameter changes its gradient, or results are kept from call to call."
        )


def _widened(data: Any) -> Any:
    """Of the first task, in float64."""
    return tree_map(lambda value: value[:1].double() if value.is_floating_point() else value[:1], data)


def _judge(exact: Call, manner: Manner, u: Tensor, data: Any, plain: Derivatives) -> None:
    """Note what central differences in float64 say of one task; refuse an autograd function that is wrong."""
    manner.first_order = plain.why
    data = _widened(data)

    def value(at: Tensor) -> Tensor:
        with torch.enable_grad():  # a model may differentiate in its forward pass
            found = exact(manner, at, tree_map(torch.clone, data)).sum()
        if found.dtype != torch.float64:
            raise TypeError(found.dtype)
        return found

    try:
        slope, product = disagreements(value, _widened(u), TOO_FAR)
    except InputError:
        raise
    except (RuntimeError, TypeError):  # it wants its own dtype
        return
    if math.inf in (slope, product):  # of numbers that are not finite nothing can be said
        manner.sure = False
        return
    if slope > TOO_FAR:
        if CUSTOM in plain.nodes:
            raise InputError(
                f"The gradient of model and loss is {slope:.0%} off central differences of the loss itself, and an "
                "autograd function of your own has a part in it; correct its backward."
            )
        manner.detached = slope
    if plain.second is not None and product > TOO_FAR:
        manner.first_order = f"its Hessian-vector products are {product:.0%} off central differences of the gradient"


def _why_not_at_once(call: Call, manner: Manner, u: Tensor, start: Tensor, data: Any, plain: Derivatives) -> str:
    """What vmap does otherwise; empty where it gives the same."""
    if told := plain.nodes & {PADDED, TIES}:
        return min(told)
    together = replace(manner, batched=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="There is a performance drop")  # a loop, and a slow one
            found = _derivatives(call, together, u, data)
            # at the start itself too, where zeros may tie
            tied, right = (
                gradient_at(lambda at, m=m: call(m, at, tree_map(torch.clone, data)).sum(), start)[1]
                for m in (together, manner)
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever vmap cannot do
        return f"vmap cannot ({first_line(error)})"
    pairs = [(tied, right), (found.value, plain.value), (found.first, plain.first)]
    if plain.second is not None:
        if found.second is None:
            return f"vmap has no second derivative ({found.why})"
        pairs.append((found.second, plain.second))
    if all(_close(mine, own) for mine, own in pairs if bool(torch.isfinite(own).all())):
        return ""
    return "vmap gives other values or derivatives than torch's own operators"


def _remember(
    call: Call, manner: Manner, parts: tuple[Any, ...], frozen: Mapping[str, Tensor], u: Tensor, data: Any
) -> None:
    """Note what two calls write to; refuse a model of which the second one knows of the first."""
    drawn, kept = random_state(u), snapshot(*parts)
    pristine = {name: value.clone() for name, value in frozen.items()}
    once, start = tree_map(torch.clone, data), u.clone()
    with torch.enable_grad():  # what recomputes does so only where there is something to differentiate
        u.requires_grad_()
        first = _first(call, manner, u, once)
        # a version tells of what was written even where the values happened to stay, and not of ``.data``
        manner.copies_data = any(
            bool(a._version) or not same(a, b) for a, b in zip(tree_leaves(once), tree_leaves(data), strict=True)
        )
        written = [name for name, value in frozen.items() if value._version or not same(value, pristine[name])]
        spoiled = bool(u._version)
        second = call(manner, u, tree_map(torch.clone, data)).detach()
        put_back(kept)
        for name in written:
            frozen[name].detach().copy_(pristine[name])
        turned = call(manner, u.flip(0), tree_map(lambda value: value.flip(0), data)).detach().flip(0)
        u.requires_grad_(False)
    if spoiled or not same(u, start):
        raise InputError(WRITES)
    if drawn != random_state(u):
        raise InputError(DRAWS)
    manner.copies_frozen = bool(written)
    if bool((first.isnan() & second.isnan()).any()):
        return
    repeated = (
        torch.equal(first, second) if not first.is_cuda else _close(first, second)
    )  # there, sums have no fixed order
    if not repeated and written:
        raise InputError(
            f"Each call of the model changes its {written[0]!r}, and with it the next result; put that module into "
            "eval mode, or hold it fixed."
        )
    if not repeated:
        raise InputError(
            "The model or the loss gives another value each time that it is called; draw no random numbers and keep "
            "no state in it."
        )
    if not torch.equal(first, turned) and not _close(first, turned, 1e-3):
        raise InputError(
            "The model or the loss remembers what it was called with first; initialise it on a batch of its own "
            "before, or keep no results in it."
        )


def _first(call: Call, manner: Manner, u: Tensor, data: Any) -> Tensor:
    """The losses; noted is whether they could be had on the model itself."""
    try:
        with ExitStack() as stack, warnings.catch_warnings():
            with suppress(RuntimeError):  # somebody packs saved tensors around all of this: then nothing can be told
                stack.enter_context(disable_saved_tensors_hooks(HOOKED))
            warnings.filterwarnings("error", message="None of the inputs have requires_grad")
            return call(manner, u, data).detach()
    except UserWarning as error:
        raise InputError(
            "torch.utils.checkpoint gives a model no gradient where its input has none; call it with "
            "use_reentrant=False."
        ) from error
    except RuntimeError as error:
        if HOOKED not in str(error):
            raise
    manner.copies_model = True
    return call(manner, u, data).detach()


@dataclass(frozen=True)
class Derivatives:
    """Losses ``[B]`` at a point, their gradient and a Hessian-vector product, ``[B, d]``."""

    value: Tensor
    first: Tensor
    second: Tensor | None  # with a fixed direction; None where there is none
    why: str  # there is none
    nodes: frozenset[str]  # names of those in the graph of losses and gradient


def _derivatives(call: Call, manner: Manner, u: Tensor, data: Any) -> Derivatives:
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = call(manner, u, tree_map(torch.clone, data))
        if not value.requires_grad:
            raise InputError("The loss does not depend on the adapted parameters; adapt others, or mend the model.")
        (first,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    nodes, second, why = _nodes(value, first), None, ""
    if "torch::autograd::Error" in nodes:
        why = "an autograd function is marked as once_differentiable"
    elif not first.requires_grad:
        second = torch.zeros_like(u)
    else:
        try:
            (second,) = torch.autograd.grad(first, u, ripple(u.detach()), materialize_grads=True)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            why = first_line(error) + ("; set torch.backends.cudnn.enabled = False" if "cudnn" in str(error) else "")
    return Derivatives(value.detach(), first.detach(), second, why, nodes)


def _nodes(*results: Tensor) -> frozenset[str]:
    """The names of the nodes of a graph; with ``PADDED``, ``TIES`` and ``CUSTOM`` where there are such."""
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
            if node.name() in SHARED:
                names.add(TIES)
            if node.name() != HOOK and isinstance(node, torch.autograd.function.BackwardCFunction):
                names.add(CUSTOM)
            waiting += [source for source, _ in node.next_functions]
    return frozenset(names)


def shapes(data: Any) -> str:
    """Of what one task's call is given."""
    return str([list(leaf.shape[1:]) for leaf in tree_leaves(data)])


def _rows(value: Tensor, rows: int) -> Tensor:
    """So many of them, the one twice where there is one alone."""
    value = value.detach()[:rows]
    return value.expand(ROWS, *value.shape[1:]) if len(value) == 1 else value


def _close(mine: Tensor, right: Tensor, share: float = 1.0) -> bool:
    autocast = torch.is_autocast_enabled(right.device.type)
    tolerance = share * (ROUGHLY if autocast else AGREES.get(right.dtype, ROUGHLY))
    return bool((mine - right).norm() <= tolerance * right.norm())  # no ratio: of huge numbers both may be infinite
