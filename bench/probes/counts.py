"""What one outer update asks of the machine, as exact integers."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bench.probes.base import Measurement, eager_only
from bench.problems.base import BenchProblem
from bench.records import Cell


class OperatorCount(TorchDispatchMode):
    """Counts the operators that reach the dispatcher below autograd and vmap.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Count, then run."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """Gradients, Hessian-vector products, stored states, steps, floating-point operations, dispatched operators."""
    eager_only(cell, "counts")
    update = problem.update(cell, 0)
    update()  # the first one looks at the model
    with FlopCounterMode(display=False) as flops:
        out = update()
    with OperatorCount() as operators:
        update()
    result = Measurement(metrics={"flops": flops.get_total_flops(), "dispatched_ops": operators.count})
    result.count(out.stats)
    result.judge(out.status)
    return result
