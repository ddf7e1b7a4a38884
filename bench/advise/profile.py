"""``amaml-bench profile``: a user's own problem through all methods, under a memory and a time budget."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amaml_core import InputError
from bench.harness import runner
from bench.harness.estimate import estimate
from bench.problems.custom import Custom
from bench.records import Cell, Record, Store
from bench.spec import Grid, SweepSpec, expand

PHASES = ("allocator", "time", "error")  # in this order: what fails for memory is not timed
# at each length in this order: what is exact and cheap first, what may take long last
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("maml", {}),
    ("remat-maml", {"segment": "sqrt"}),
    ("fomaml", {}),
    ("reptile", {}),
    ("amaml", {"num_states": "few", "forward": "rk4", "backward": "rk4"}),
    ("amaml", {"grad_rtol": 0.02}),
    ("imaml", {"variant": "paper-gd"}),
    ("amaml", {}),
)
SEEDS = (1, 2)  # of the other tasks on which what is recommended has to prove itself
CHECKPOINTS = {"forward": "rk4", "backward": "rk4", "checkpoint": "sqrt"}
KEPT_ON = ("cpu", "cuda")
FEW = 4  # steps a state
LEAST_SECONDS = 1.0  # of a cell in a worker that runs already: a time takes as long


@dataclass(frozen=True)
class Budget:
    """What a profile may take.

    Attributes:
        memory_bytes: of one outer update.
        seconds: of the whole profile.
    """

    memory_bytes: int
    seconds: float


def check(factory: str, device: str, say: Callable[[str], None] = lambda note: None) -> str:
    """Hold the model's derivatives against plain torch here, so that a mistake in the file is told at once.

    Returns:
        The model's dtype, "float32" or "float64".

    Raises:
        InputError: the file, its function or what that returns cannot be used.
    """
    custom = Custom(factory=factory)
    try:
        dtype = custom.dtype()
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"The model of {factory} is {dtype}; convert it to float32 or float64.")
        (_, theta, tasks), (_, theta_again, tasks_again) = (custom.instance(0, 0, dtype, device) for _ in "12")
        for note in custom.check(device).notes:
            say(note)
    except InputError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"{factory} failed{_line(error, factory)} ({_told(error)}); mend it and run again.") from error
    again = tasks_again.tensors()
    same = all(torch.equal(value, again[name]) for name, value in tasks.tensors().items())
    if not (torch.equal(theta, theta_again) and same):
        raise InputError(f"{factory} makes another problem each time; draw its random numbers from a seeded generator.")
    return str(dtype).removeprefix("torch.")


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())


def _line(error: Exception, factory: str) -> str:
    """Where in the user's file it happened."""
    path = Path(factory.rpartition(":")[0]).resolve()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path]
    return f" in line {lines[-1]}" if lines else ""


def plan_cells(
    factory: str, steps: Sequence[int], lr: float, *, device: str, dtype: str, chunk_size: int | None = None
) -> list[Cell]:
    """All methods at these trajectory lengths: the allocator's peak, the time and the error of each.

    ``amaml`` comes as in the paper, a state a step, as rk4 both ways on a quarter of that, whose cost no kink in the
    loss can drive up, and with steps that it finds itself. The three cells of a method follow each other, so that
    whenever the time is over there are methods that were measured whole.
    """
    grids = [
        Grid(
            probe=list(PHASES),
            problem="custom",
            problem_options={"factory": factory, "chunk_size": chunk_size},
            method=method,
            options={"inner_steps": length, "inner_lr": lr, **options, **_states(length, options)},
            dtype=dtype,
        )
        for length in sorted(steps)
        for method, options in VARIANTS
    ]
    return expand(SweepSpec(name="profile", description="", grid=grids), device=device)


def with_checkpoints(cells: Iterable[Cell]) -> list[Cell]:
    """For updates of ``amaml`` that were too big: rk4 on as many states, of which the square root is kept."""
    return [
        cell.model_copy(update={"options": cell.options | CHECKPOINTS, "probe": probe})
        for cell in cells
        if cell.method == "amaml" and not cell.options["checkpoint"] and "grad_rtol" not in cell.options
        for probe in PHASES
    ]


def on_other_tasks(cell: Cell) -> list[Cell]:
    """The error of the same update for each of ``SEEDS``."""
    return [cell.model_copy(update={"probe": "error", "seed": seed}) for seed in SEEDS]


def _states(steps: int, options: Mapping[str, Any]) -> dict[str, int]:
    return {"num_states": math.ceil(steps / FEW)} if options.get("num_states") == "few" else {}


def run(
    plan: runner.Plan,
    store: Store,
    budget: Budget,
    *,
    reporter: runner.Reporter,
    say: Callable[[str], None],
) -> tuple[list[Record], bool]:
    """Measure as many of the plan's cells as the budget allows, in their order.

    One worker measures one cell after the other, for starting one takes longer than most cells. A cell that will not
    end in time, to judge by those before, is not started. A method that fails or takes more memory than the budget has
    is not measured further.

    Returns:
        The records of these cells that there are now, and whether the run was interrupted.
    """
    deadline = time.monotonic() + budget.seconds

    def admit(cell: Cell, new: Sequence[Record]) -> bool:
        known = [*plan.done, *new]
        out = {update_key(r.cell) for r in known if r.cell.probe == "allocator" and not _fits(r, budget)}
        in_time = estimate([cell], known, LEAST_SECONDS).seconds < deadline - time.monotonic()
        return in_time and update_key(cell) not in out

    records, interrupted = runner.run(
        plan,
        store,
        timeout_s=budget.seconds,
        deadline=deadline,
        admit=admit,
        kept_on=KEPT_ON,
        reporter=reporter,
        say=say,
    )
    return plan.done + records, interrupted


def too_big(record: Record, budget: Budget) -> bool:
    """Whether an update was found to need more memory than the budget has."""
    return record.status == "oom" or (record.status == "ok" and not _fits(record, budget))


def _fits(record: Record, budget: Budget) -> bool:
    return record.status == "ok" and record.metrics.get("peak_allocated_bytes", 0) <= budget.memory_bytes


def update_key(cell: Cell) -> tuple[str, str]:
    """Which outer update a cell measures, whatever its probe."""
    return cell.method, str([*sorted(cell.options.items()), cell.problem_options.get("chunk_size")])
