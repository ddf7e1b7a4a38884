"""How a model has to be called, found out by one look at it: what it writes to, what it draws, what vmap changes."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from amaml_core.differences import disagreements
from amaml_core.errors import InputError

ROWS = 2  # tasks that are looked at: the second shows what a batching rule does for the first alone
# relative to the size of what is compared: far above rounding, and far below the faults that were seen (6 % and more)
AGREES = {torch.float64: 1e-7, torch.float32: 1e-2}
ROUGHLY = 0.1  # in half precision
HOOKED = "saved tensors are packed"
TOO_FAR = 1e-2  # of derivatives from central differences in float64
# operators of attention and of weight norm, of which the second derivative is missing or wrong
FUSED = ("ScaledDotProduct", "WeightNormInterface")
PADDED = "an embedding with a padding"

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
    u, data = _rows(u), tree_map(_examples, data)
    manner = Manner(eager=_compiles(model, loss))
    kept = snapshot(model)
    try:
        manner = _memory(call, manner, model, frozen, u, data)
        plain = _derivatives(lambda at: call(manner, at, tree_map(torch.clone, data)), u)
        if any(part in name for name in plain.nodes for part in FUSED):
            manner = replace(manner, by_parts=True)
            plain = _derivatives(lambda at: call(manner, at, tree_map(torch.clone, data)), u)
        why, sure = _wrong(exact, manner, u, data, plain)
        manner = replace(manner, first_order=plain.why or why, sure=sure)
    finally:
        changed = put_back(kept)
    manner = replace(manner, restores=changed)
    if not vmaps or manner.copies_model:
        return manner
    if PADDED in plain.nodes:
        return replace(manner, why="vmap does not spare the padding of an embedding from the gradient in every task")
    return _batched(call, manner, u, data, plain)


def _wrong(exact: Call, manner: Manner, u: Tensor, data: Any, plain: Derivatives) -> tuple[str, bool]:
    """Why the second derivative is not to be trusted, or nothing; and whether that could be told.

    Raises:
        InputError: the first is not.
    """
    one, own = (
        tree_map(lambda value: value[:1].double() if value.is_floating_point() else value[:1], v) for v in (u, data)
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
        return "", True
    if slope == math.inf:  # of numbers that are not finite nothing can be said
        return "", False
    if slope > TOO_FAR:
        raise InputError(
            f"The gradient of model and loss is {slope:.0%} off central differences of the loss itself; usual causes: "
            "an autograd function whose backward is wrong, a straight-through estimator, detach(), .data or no_grad."
        )
    if plain.second is None or product <= TOO_FAR or product == math.inf:
        return "", product < math.inf
    return f"its Hessian-vector products are {product:.0%} off central differences of the gradient", True


def _batched(call: Call, manner: Manner, u: Tensor, data: Any, plain: Derivatives) -> Manner:
    """The same manner by vmap, where that gives the same."""
    together = replace(manner, batched=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="There is a performance drop")  # a loop, and a slow one
            found = _derivatives(lambda at: call(together, at, tree_map(torch.clone, data)), u)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever vmap cannot do
        return replace(manner, why=f"vmap cannot ({first_line(error)})")
    if found.second is None and plain.second is not None:
        return replace(manner, why=f"vmap has no second derivative ({found.why})")
    for mine, right in zip(found.tensors(), plain.tensors(), strict=False):
        if bool(torch.isfinite(right).all()) and not _close(mine, right):
            return replace(manner, why="vmap gives other values or derivatives than torch's own operators")
    return together


def _memory(call: Call, manner: Manner, model: nn.Module, frozen: Mapping[str, Tensor], u: Tensor, data: Any) -> Manner:
    """What two calls write to, and whether the second one knows of the first."""
    drawn = _random_state(u)
    once = tree_map(torch.clone, data)
    leaves = tree_leaves(once)
    before = [leaf._version for leaf in leaves], {name: value._version for name, value in frozen.items()}, u._version
    with torch.enable_grad():  # what recomputes does so only where there is something to differentiate
        u.requires_grad_()
        first, manner = _first(call, manner, u, once)
        if [leaf._version for leaf in leaves] != before[0]:
            manner = replace(manner, copies_data=True)
        written = [name for name, value in frozen.items() if value._version != before[1][name]]
        second = call(manner, u, tree_map(torch.clone, data)).detach()
        u.requires_grad_(False)
    if u._version != before[2]:
        raise InputError("The model writes to its own parameters in its forward pass; compute changed copies instead.")
    if drawn != _random_state(u):
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
    """The names of the nodes of a graph; ``PADDED`` where an embedding has a padding."""
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
            waiting += [source for source, _ in node.next_functions]
    return frozenset(names)


def _compiles(model: nn.Module, loss: Any) -> bool:
    """Whether ``torch.compile`` has been at work on a model, a part of it or a loss."""
    if "torch._dynamo" not in sys.modules:
        return False
    parts = [loss, *model.modules()]
    parts += [value for module in model.modules() for value in vars(module).values()]
    return any(getattr(part, "_torchdynamo_orig_callable", None) or hasattr(part, "_orig_mod") for part in parts)


class _Parts(TorchFunctionMode):
    """Weight norm in plain operators: the second derivative of torch's fused one is wrong."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Another function in the place of that one."""
        if func is not torch._weight_norm:  # pyright: ignore[reportPrivateImportUsage]
            return func(*args, **(kwargs or {}))
        v, g, *dim = args
        return v * (g / torch.norm_except_dim(v, 2, *dim or (kwargs or {}).values()))


@contextmanager
def by_parts() -> Iterator[None]:
    """Attention and weight norm in plain operators: the fused ones have no second derivative, or a wrong one."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Parts():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def snapshot(model: nn.Module) -> dict[nn.Module, dict[str, Any]]:
    """The attributes of all modules of a model."""
    return {module: dict(vars(module)) for module in model.modules()}


def put_back(kept: Mapping[nn.Module, dict[str, Any]]) -> bool:
    """The attributes as they were; whether any was not."""
    changed = False
    for module, attributes in kept.items():
        now = vars(module)
        if now.keys() != attributes.keys() or any(now[name] is not value for name, value in attributes.items()):
            changed = True
            now.clear()
            now.update(attributes)
    return changed


def _rows(u: Tensor) -> Tensor:
    """``ROWS`` points near these, none on a kink that a special start may lie on."""
    u = u.detach()[:ROWS]
    u = u.expand(ROWS, -1) if len(u) == 1 else u
    ripple = torch.cos(torch.arange(u.numel(), dtype=u.dtype, device=u.device) + 1).view_as(u)
    return u + 1e-2 * (u.square().mean().sqrt() + 1e-2) * ripple


def _examples(value: Tensor) -> Tensor:
    value = value.detach()[:ROWS]
    return (value.expand(ROWS, *value.shape[1:]) if len(value) == 1 else value).clone()


def _close(mine: Tensor, right: Tensor) -> bool:
    size = torch.linalg.vector_norm(right)
    return bool(torch.linalg.vector_norm(mine - right) <= _tolerance(right) * size)


def _tolerance(value: Tensor) -> float:
    if torch.is_autocast_enabled(value.device.type):
        return ROUGHLY
    return AGREES.get(value.dtype, ROUGHLY)


def _random_state(value: Tensor) -> tuple[Any, ...]:
    """Of the generators that a model may draw from without being asked."""
    numpy: Any = sys.modules.get("numpy")
    _, words, position, *_ = numpy.random.get_state() if numpy else (None, b"", 0)
    return (
        torch.random.get_rng_state().numpy().tobytes(),
        torch.cuda.get_rng_state(value.device).numpy().tobytes() if value.is_cuda else None,
        random.getstate(),
        bytes(words),
        position,
    )


def first_line(error: BaseException) -> str:
    """The first line of what an exception says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
