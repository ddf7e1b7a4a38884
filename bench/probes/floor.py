"""What an outer update's matrix products, convolutions and activations take alone, each operator by itself."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

from amaml_core.engine import inductor
from bench.probes.base import Measurement, eager_only, on_threads
from bench.problems.base import BenchProblem
from bench.records import Cell

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm, ATEN.bmm, ATEN.addmm, ATEN.baddbmm, ATEN.convolution, ATEN.convolution_backward)
ACTIVATIONS = (ATEN.tanh, ATEN.gelu, ATEN.relu)
COUNTED = {operator.default for operator in PRODUCTS + ACTIVATIONS}
REPEATS = 8  # of an operator in one compiled call


class Operators(TorchDispatchMode):
    """Counts the products and activations of an update by what they are and the layouts of their inputs.

    Attributes:
        counts: (operator, its arguments with (shape, strides) in the place of tensors) -> how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[Any, tuple[Any, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Count, then run."""
        if func in COUNTED:
            self.counts[func, tuple(_layout(value) for value in args)] += 1
        return func(*args, **(kwargs or {}))


def _layout(value: Any) -> Any:
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), value.stride()
    return tuple(value) if isinstance(value, list) else value


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """``floor_seconds``: each operator's own time, compiled, on inputs of its layout, times how often it runs.

    Each is timed on one thread, and counts with the share of the tasks that the busiest thread has when the tasks are
    divided among all. The update is counted in the eager engine, which shares every linearisation that can be shared.
    """
    eager_only(cell, "floor")
    update = problem.update(cell, 0)
    update()  # the first one looks at the model
    with Operators() as operators:
        out = update()
    result = Measurement()
    result.count(out.stats)
    result.judge(out.status)
    dtype = getattr(torch, cell.dtype)
    with on_threads(1):
        alone = sum(
            count * _seconds(operator, arguments, dtype, cell.device)
            for (operator, arguments), count in operators.counts.items()
        )
    tasks, threads = len(out.status), torch.get_num_threads() if cell.device == "cpu" else 1
    result.metrics["floor_seconds"] = alone * math.ceil(tasks / threads) / tasks
    return result


def _seconds(operator: Any, arguments: tuple[Any, ...], dtype: torch.dtype, device: str) -> float:
    places = [index for index, value in enumerate(arguments) if isinstance(value, tuple) and value[:1] == ("tensor",)]
    # the same tensors each time, so that they stay in the cache; as arguments of their own, so that none is left out
    inputs = [_filled(arguments[place][1], arguments[place][2], dtype, device) for place in places] * REPEATS

    def repeated(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = []
        for first in range(0, len(tensors), len(places)):
            filled = [list(value) if isinstance(value, tuple) else value for value in arguments]
            for place, tensor in zip(places, tensors[first:], strict=False):
                filled[place] = tensor
            found = operator(*filled)
            results += [one for one in (found if isinstance(found, tuple) else [found]) if one is not None]
        return tuple(results)

    def seconds(inputs: list[Tensor]) -> float:
        run = inductor.compile_function(repeated, inputs)
        timer = Timer("run(*inputs)", globals={"run": run, "inputs": inputs}, num_threads=torch.get_num_threads())
        return min(timer.blocked_autorange(min_run_time=0.2).times)

    # twice as many operators take as much longer as these do: the call's own cost is in both
    return max(seconds(inputs) - seconds(inputs[: len(inputs) // 2]), 0.0) / (REPEATS / 2)


def _filled(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    size = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    return torch.randn(size, dtype=dtype, device=device).as_strided(shape, strides)  # an expanded input has stride 0
