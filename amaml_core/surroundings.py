"""What is kept and set around calls of somebody's module: its attributes, random numbers, fused operators."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

MODULE = frozenset(vars(nn.Module()))  # attributes that every module has


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


def snapshot(*parts: Any) -> list[tuple[Any, Any]]:
    """The attributes of all modules among the parts and in them, and the containers among those, each with a copy."""
    modules = (module for part in parts if isinstance(part, nn.Module) for module in part.modules())
    kept = []
    for own in map(vars, modules):
        held = [value for name, value in own.items() if isinstance(value, list | dict | set) and name not in MODULE]
        kept += [(container, copy.copy(container)) for container in (own, *held)]
    return kept


def put_back(kept: Iterable[tuple[Any, Any]]) -> bool:
    """What a snapshot has seen as it was; whether any of it was not."""
    changed = False
    for container, before in kept:
        if not _same(container, before):
            changed = True
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)
    return changed


def _same(value: Any, held: Any) -> bool:
    if len(value) != len(held):
        return False
    if isinstance(value, dict):
        return all(key in held and held[key] is item for key, item in value.items())
    return value == held if isinstance(value, set) else all(a is b for a, b in zip(value, held, strict=True))


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN are equal to each other."""
    if a.layout != torch.strided:  # of which torch compares none
        a, b = a.to_dense(), b.to_dense()
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def compiles(model: nn.Module, loss: Any) -> bool:
    """Whether ``torch.compile`` has been at work on a model, a part of it or a loss."""
    if "torch._dynamo" not in sys.modules:
        return False
    parts = [loss, *model.modules()]
    parts += [value for module in model.modules() for value in vars(module).values()]
    return any(_has(part, "_torchdynamo_orig_callable") or _has(part, "_orig_mod") for part in parts)


def _has(part: Any, name: str) -> bool:
    with suppress(Exception):  # somebody's __getattr__ may raise anything
        return getattr(part, name, None) is not None
    return False


def random_state(value: Tensor) -> tuple[Any, ...]:
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
