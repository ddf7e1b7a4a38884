"""What is kept and set around calls of somebody's module: its attributes, random numbers, fused operators."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator, Mapping
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


def snapshot(*parts: Any) -> dict[nn.Module, dict[str, tuple[Any, Any]]]:
    """The attributes of all modules among the parts and in them, each with a copy of what a container holds."""
    return {
        module: {
            name: (value, copy.copy(value) if _holds(name, value) else None) for name, value in vars(module).items()
        }
        for part in parts
        if isinstance(part, nn.Module)
        for module in part.modules()
    }


def put_back(kept: Mapping[nn.Module, dict[str, tuple[Any, Any]]]) -> bool:
    """The attributes as they were; whether any was not."""
    changed = False
    for module, attributes in kept.items():
        now, before = vars(module), {name: value for name, (value, _) in attributes.items()}
        if not _same(now, before):
            changed = True
            now.clear()
            now.update(before)
        for name, (value, held) in attributes.items():
            if _holds(name, value) and not _same(value, held):
                changed = True
                value.clear()
                value.extend(held) if isinstance(value, list) else value.update(held)
    return changed


def _holds(name: str, value: Any) -> bool:
    return isinstance(value, list | dict | set) and name not in MODULE


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
