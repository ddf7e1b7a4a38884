"""What code reads besides its arguments, as far as it can be seen: what was compiled must notice its changes."""

from __future__ import annotations

import os
import sys
from array import array
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from enum import Enum
from functools import lru_cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.Size, CodeType)
OTHERS = frozenset({"torch", "numpy", *sys.stdlib_module_names} - {"__main__"})  # packages that do not change meanwhile
MODULE = frozenset(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}  # what every module has
BY_STRING = frozenset({"globals", "getattr", "vars", "__dict__"})  # what reads a name that is written as a string
MAKING = frozenset({"__init__", "__new__", "__init_subclass__", "__post_init__"})  # run before, not in a call
MOST = 10_000  # elements of a container that are looked at, and thousands of bytes of an array
STATES = 8  # different ones for which one problem is compiled
Parts = Iterator[tuple[str, Any]]


class Same:
    """An object that is equal to itself alone, and alive as long as this is."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value


def captured(**roots: Any) -> dict[str, Hashable]:
    """What functions and modules can reach: attributes, closures, defaults, the globals that they name, by path.

    A tensor counts as the same while it is the same object, for compiled code reads it anew; parameters and buffers of
    modules do not count at all. Plain values count by value, all else by identity and by what it holds. What is reached
    by a name that is worked out at run time, or by ``importlib``, and what is in files, is not seen.
    """
    found: dict[str, Hashable] = {}
    seen: set[int] = set()
    hooks = {"global forward hooks": _global_forward_hooks, "global forward pre-hooks": _global_forward_pre_hooks}
    waiting = [(name, value) for name, value in reversed((roots | hooks).items())]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, PLAIN):
            found[path] = type(value), value
        elif (array := _array(value)) is not None:
            found[path] = array
        elif id(value) not in seen:
            seen.add(id(value))
            inside = _inside(value, path)
            if isinstance(value, FunctionType):
                found[path] = Same(value.__code__)
            elif isinstance(value, list | tuple | dict):
                found[path] = type(value), len(value)
            else:
                found[path] = type(value) if isinstance(value, nn.Module | MethodType) else Same(value)
            waiting += reversed(list(inside))
    return found


def _inside(value: Any, path: str) -> Parts:
    """What can be reached from an object in one step, by path."""
    if isinstance(value, Tensor | BuiltinFunctionType | ModuleType):
        return
    if isinstance(value, FunctionType):
        if not _of_others(value.__module__):
            yield from _of_function(value, path)
    elif isinstance(value, MethodType):
        yield f"{path}.__self__", value.__self__
        yield f"{path}.__func__", value.__func__
    elif isinstance(value, partial):
        yield from ((f"{path}.{name}", getattr(value, name)) for name in ("func", "args", "keywords"))
    elif isinstance(value, Mapping):
        yield from ((f"{path}[{key!r}]", part) for key, part in list(value.items())[:MOST])
    elif isinstance(value, ContextVar):
        yield f"{path}.get()", value.get(None)
    elif isinstance(value, property):
        yield f"{path}.fget", value.fget
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from ((f"{path}[{index}]", part) for index, part in enumerate(list(value)[:MOST]))
    elif isinstance(value, type):
        if not _of_others(value.__module__):
            for name, part in vars(value).items():
                if not name.startswith("__") or (isinstance(part, FunctionType) and name not in MAKING):
                    yield f"{path}.{name}", getattr(part, "__func__", part)
            yield from ((f"{path}.{base.__name__}", base) for base in value.__bases__)
    else:
        skipped = MODULE if isinstance(value, nn.Module) else ()
        yield from ((f"{path}.{name}", part) for name, part in _attributes(value).items() if name not in skipped)
        if isinstance(value, nn.Module):
            yield from ((f"{path}.{name}", part) for name, part in value._modules.items())
        yield f"type of {path}", type(value)


def _attributes(value: Any) -> dict[str, Any]:
    slots = [getattr(cls, "__slots__", ()) for cls in type(value).__mro__]
    names = [name for own in slots for name in ([own] if isinstance(own, str) else own)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(value, "__dict__", {})


def _of_function(function: FunctionType, path: str) -> Parts:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"{name} of {path}", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    for index, part in enumerate(function.__defaults__ or ()):
        yield f"default {index} of {path}", part
    for name, part in {**(function.__kwdefaults__ or {}), **vars(function)}.items():
        yield f"{name} of {path}", part
    names, known = _names(function.__code__), function.__globals__
    for name in names:
        # what is not there may be a module that is imported inside, relative to the package perhaps
        part = known[name] if name in known else sys.modules.get(name) or sys.modules.get(_beside(known, name))
        if isinstance(part, ModuleType):
            yield from _of_module(part, name, names)
        elif name in known:
            yield f"{name} of {function.__module__}", part
    if "environ" in names or "getenv" in names:
        yield "os.environ", os.environ


def _of_module(module: ModuleType, path: str, names: Iterable[str], above: tuple[ModuleType, ...] = ()) -> Parts:
    """What a module and those within it hold under these names."""
    if _of_others(module.__name__) or module in above:
        return
    for name in names:
        if isinstance(part := vars(module).get(name), ModuleType):
            yield from _of_module(part, f"{path}.{name}", names, (*above, module))
        elif name in vars(module):
            yield f"{path}.{name}", part


def _beside(known: Mapping[str, Any], name: str) -> str:
    return f"{known.get('__package__') or ''}.{name}"


@lru_cache(maxsize=1024)
def _names(code: CodeType) -> tuple[str, ...]:
    """The names of globals and attributes in a function and in those that are written inside of it."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    spelt = code.co_consts if BY_STRING.intersection(code.co_names) else ()
    return tuple(dict.fromkeys([*code.co_names, *inner, *(name for name in spelt if isinstance(name, str))]))


def _of_others(module: Any) -> bool:
    return not isinstance(module, str) or module.partition(".")[0] in OTHERS


def _array(value: Any) -> bytes | Same | None:
    """What an array holds, or one that is very large; nothing for anything else."""
    if isinstance(value, array | bytearray):
        return bytes(value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        return None
    return value.tobytes() if value.nbytes <= 1000 * MOST else Same(value)
