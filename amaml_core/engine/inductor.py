"""Traced functions, built by inductor into one call each."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from amaml_core.engine.eager import vector_jacobian
from amaml_core.engine.traced import halves, trace
from amaml_core.errors import InputError, first_line

Compiled = Callable[..., tuple[Tensor, ...]]
CPU_OPTIONS = {
    "cpp_wrapper": True,
    "compile_threads": 1,
    "realize_opcount_threshold": 30,  # so that a tanh with several uses is worked out once; the default repeats it
}

# of a compiled graph's results from those of its operators: far above rounding, and far below what was seen (30 %)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
ROUGHLY = 0.1  # in half precision

seconds = 0.0
"""Seconds that this process has spent compiling."""


class OtherNumbersError(InputError):
    """What torch's compiler built is not the function that it was given."""


def compile_function(function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]) -> Compiled:
    """A pure function of tensors, compiled for the shapes, dtypes and device of the examples; its results in a tuple.

    Raises:
        InputError: there is no C++ compiler, or it cannot be traced or compiled.
        OtherNumbersError: compiled it is another function.
    """
    with _compiling():
        graph, constants = trace(function, examples)
        _refuse_writes(graph)
        built = _build(graph, [*examples, *constants])
    return lambda *arguments: built(*arguments, *constants)


def compile_pullback(
    function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """A pure function u, … -> (value,), of u's shape, compiled into its value and its product with ∂value/∂uᵀ.

    What the product needs of the first half (its residuals) is kept between the two, as autograd keeps its graph; the
    arguments must not be changed in between. Errors are those of ``compile_function``.
    """

    def joint(direction: Tensor, u: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (value,) = function(u, *rest)
        return value.detach(), vector_jacobian(value, u, direction, keep=False)

    with _compiling():
        graph, constants = trace(joint, [torch.empty_like(examples[0]), *examples])
        _refuse_writes(graph)
        first, second, needed = halves(graph)
        given = [*examples, *constants]
        forward = _build(first, given)
        _, *residuals = forward(*given)
        backward = _build(second, [torch.ones_like(examples[0]), *residuals, *(given[i] for i in needed)])

    def call(*arguments: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        arguments = (*arguments, *constants)
        with torch.no_grad():
            value, *residuals = forward(*arguments)

        def product(direction: Tensor) -> Tensor:
            with torch.no_grad():
                return backward(direction.contiguous(), *residuals, *(arguments[i] for i in needed))[0]

        return value, product

    return call


def _refuse_writes(graph: fx.GraphModule) -> None:
    """An ``InputError`` where an argument is written to: whether a look or autograd noticed may depend on values."""
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        source = node.args[0]
        while source.op == "call_function" and (source.target is getitem or getattr(source.target, "is_view", False)):
            source = source.args[0]
        if source.op == "placeholder":
            raise InputError(
                f"The model or the loss writes to its parameters, buffers or data by {node.target} on .data or "
                "detach(); compute changed copies instead."
            )


@contextmanager
def _compiling() -> Iterator[None]:
    """Adds the time spent inside to ``seconds``; what torch's compiler warns of itself concerns nobody here."""
    global seconds
    began = time.perf_counter()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        except (InputError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            told = first_line(error)
            if "InvalidCxxCompiler" in f"{error!r} {error}":
                told = "there is no C++ compiler: install g++ or clang"
            raise InputError(f'engine="compiled" fails here ({told}); use engine="eager".') from error
    seconds += time.perf_counter() - began


def _build(graph: fx.GraphModule, examples: Sequence[Tensor]) -> Compiled:
    import torch._inductor as inductor

    options: dict[str, Any] = CPU_OPTIONS if examples[0].device.type == "cpu" else {}
    built: Any = inductor.compile(graph, list(examples), options=options)
    for found, right in zip(built(*examples), graph(*examples), strict=True):  # no compiler is beyond doubt
        tolerance = TOLERANCE.get(right.dtype, ROUGHLY)
        finite = right.is_floating_point() and bool(torch.isfinite(right).all())
        if finite and not bool((found - right).norm() <= tolerance * right.norm()):
            error = float((found - right).norm() / right.norm())
            raise OtherNumbersError(f"What torch's compiler builds is {error:.1%} off torch's own operators")
    return built
