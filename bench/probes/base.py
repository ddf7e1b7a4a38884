"""What a probe hands to the worker."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from amaml_core import InputError, Status
from bench.records import Cell

STATS = ("grad_evals", "hvp_evals", "states_stored", "forward_steps")


@dataclass
class Measurement:
    """One cell's numbers: status and reason as in a record, metrics by name, raw samples by metric name."""

    status: Literal["ok", "diverged"] = "ok"
    reason: str = ""
    metrics: dict[str, float | int] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)

    def count(self, stats: Mapping[str, int]) -> None:
        """Take over the counters that a method keeps."""
        self.metrics |= {name: stats[name] for name in STATS if name in stats}

    def judge(self, statuses: Sequence[Status]) -> None:
        """Note diverged tasks, which decide the cell's status, and count those inaccurate or not converged."""
        diverged = [status for status in statuses if status == "diverged"]
        if diverged and self.status == "ok":
            self.status = "diverged"
            self.reason = f"{len(diverged)} of {len(statuses)} tasks: {diverged[0].remedy}"
        for code in ("not_converged", "inaccurate"):
            if count := sum(status == code for status in statuses):
                self.metrics[f"{code}_tasks"] = self.metrics.get(f"{code}_tasks", 0) + count


def eager_only(cell: Cell, probe: str) -> None:
    """Refuse a cell whose update no dispatch mode can see into.

    Raises:
        InputError: the engine is not eager.
    """
    if cell.engine != "eager":
        raise InputError(f"The probe {probe} sees operators of the eager engine only; use the probe allocator or time.")


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """With so many threads for torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def collected() -> Iterator[None]:
    """Garbage is collected before, and not inside: when a reference cycle dies must not decide a peak."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
