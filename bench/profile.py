"""``amaml-bench profile``: a user's own problem through all methods, under a memory and a time budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from amaml_core import InputError
from bench import runner
from bench.estimate import estimate
from bench.problems.custom import Custom
from bench.records import Cell, Record, Store
from bench.spec import Grid, SweepSpec, expand

WORKER_BYTES = 2**30  # Python and torch themselves, beside what an update takes
PHASES = ("memory", "allocator", "time", "error")  # in this order: what fails for memory is not timed


@dataclass(frozen=True)
class Budget:
    """What a profile may take.

    Attributes:
        memory_bytes: of one outer update.
        seconds: of the whole profile.
    """

    memory_bytes: int
    seconds: float


def check(factory: str, device: str) -> str:
    """Make one outer update's ingredients here, so that a mistake in the file is told at once; its dtype.

    Raises:
        InputError: the file, its function or what that returns cannot be used.
    """
    custom = Custom(factory=factory)
    try:
        problem, _, tasks = custom.instance(0, 0, device=device)
        problem.bind(problem.initial_parameters(None), tasks)
        dtype = custom.dtype()
    except InputError:
        raise
    except Exception as error:  # whatever the user's code raises
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        at = error.__traceback__
        line = None
        while at is not None:
            if at.tb_frame.f_code.co_filename.endswith(factory.rpartition(":")[0]):
                line = at.tb_lineno
            at = at.tb_next
        where = f" in line {line}" if line else ""
        raise InputError(f"{factory} failed{where} ({told}); mend it and run again.") from error
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"The model of {factory} is {dtype}; convert it to float32 or float64.")
    return str(dtype).removeprefix("torch.")


def plan_cells(factory: str, steps: Sequence[int], lr: float, *, device: str, dtype: str) -> list[Cell]:
    """All methods at these trajectory lengths: memory, time and error of each; on CUDA the allocator's peak besides.

    ``amaml`` comes as in the paper, a state a step, and as rk4 on a quarter of that.
    """
    probes = [probe for probe in PHASES if probe != "allocator" or device == "cuda"]
    variants: list[tuple[str | list[str], dict[str, Any]]] = [
        (["maml", "fomaml", "reptile"], {}),
        ("remat-maml", {"segment": "sqrt"}),
        ("imaml", {"variant": "paper-gd"}),
        ("amaml", {}),
    ]
    grids = []
    for length in sorted(steps):
        each = {"inner_steps": length, "inner_lr": lr}
        for method, options in [*variants, ("amaml", {"num_states": math.ceil(length / 4), "backward": "rk4"})]:
            grids.append(
                Grid(
                    probe=probes,
                    problem="custom",
                    problem_options={"factory": factory},
                    method=method,
                    options=each | options,
                    dtype=dtype,
                )
            )
    cells = expand(SweepSpec(name="profile", description="", grid=grids), device=device)
    return sorted(cells, key=lambda cell: (cell.options["inner_steps"], PHASES.index(cell.probe)))


def run(
    plan: runner.Plan,
    store: Store,
    budget: Budget,
    *,
    reporter: runner.Reporter,
    say: Callable[[str], None],
) -> tuple[list[Record], bool]:
    """Measure as many of the plan's cells as the budget allows, in their order.

    A cell that will not end in time, to judge by those before, is not started. A method that fails for memory or
    diverges is not timed.

    Returns:
        The records of these cells that there are now, and whether the run was interrupted.
    """
    deadline = time.monotonic() + budget.seconds

    def admit(cell: Cell, new: Sequence[Record]) -> bool:
        known = [*plan.done, *new]
        failed = {update_key(r.cell) for r in known if r.cell.probe == "memory" and r.status != "ok"}
        fits = estimate([cell], known).seconds < deadline - time.monotonic()
        return fits and (cell.probe == "memory" or update_key(cell) not in failed)

    records, interrupted = runner.run(
        plan,
        store,
        timeout_s=budget.seconds,
        memory_bytes=budget.memory_bytes + WORKER_BYTES,
        deadline=deadline,
        admit=admit,
        reporter=reporter,
        say=say,
    )
    return plan.done + records, interrupted


def update_key(cell: Cell) -> tuple[str, str]:
    """Which outer update a cell measures, whatever its probe."""
    return cell.method, str(sorted(cell.options.items()))
