"""Shows a sweep's progress: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from bench.harness.estimate import estimate
from bench.harness.runner import Plan
from bench.records import Cell, Record

BETWEEN_S = 60.0  # between two lines about one cell
HEADLINES = ("nrmse", "outer_update_seconds", "peak_live_bytes", "peak_allocated_bytes", "rel_error_flow", "flops")


class LineReporter:
    """One line a finished cell."""

    def __init__(self, plan: Plan, console: Console, quiet: bool) -> None:
        self.plan, self.console, self.quiet = plan, console, quiet
        self.records, self.failed, self.began = list[Record](), 0, time.monotonic()
        self.spoken: dict[str, float] = {}

    def started(self, cell: Cell) -> None:
        """See ``runner.Reporter``."""
        self.spoken[cell.cell_id] = time.monotonic()

    def progressed(self, cell: Cell, done: int, total: int) -> None:
        """See ``runner.Reporter``."""
        if not self.quiet and time.monotonic() - self.spoken[cell.cell_id] > BETWEEN_S:
            self.spoken[cell.cell_id] = time.monotonic()
            self.console.print(f"{cell.label}  {done} of {total}", markup=False)

    def finished(self, record: Record) -> None:
        """See ``runner.Reporter``."""
        self.records.append(record)
        fine = record.status == "ok"
        self.failed += not fine
        if self.quiet and fine:
            return
        total = len(self.plan.todo)
        numbers = " ".join(f"{name}={record.metrics[name]:.4g}" for name in HEADLINES if name in record.metrics)
        count = f"{len(self.records):>{len(str(total))}}/{total}"
        text = f"{record.cell.label}  {numbers if fine else record.reason}  ({self.left()} left)"
        self.console.print(f"[{count}] {record.status:<8} {record.duration_s:6.1f} s  {text}", markup=False)

    def left(self) -> str:
        """The time that is left: long trajectories come last, so that a mean over those before would be far off."""
        finished = {record.cell_id for record in self.records}
        waiting = [cell for cell in self.plan.todo if cell.cell_id not in finished]
        work = sum(record.duration_s for record in self.records)
        at_once = max(work / (time.monotonic() - self.began), 1.0)  # two where cells share the machine
        return clock(estimate(waiting, [*self.plan.done, *self.records]).seconds / at_once)


class BarReporter(LineReporter):
    """The same lines above a live bar that names the running cells."""

    def __init__(self, plan: Plan, console: Console, quiet: bool, progress: Progress, task: TaskID) -> None:
        super().__init__(plan, console, quiet)
        self.progress, self.task = progress, task
        self.running: dict[str, str] = {}

    def started(self, cell: Cell) -> None:
        """See ``runner.Reporter``."""
        self.running[cell.cell_id] = cell.label
        self._show()

    def progressed(self, cell: Cell, done: int, total: int) -> None:
        """See ``runner.Reporter``."""
        if cell.cell_id in self.running:
            self.running[cell.cell_id] = f"{cell.label} {done}/{total}"
            self._show()

    def finished(self, record: Record) -> None:
        """See ``runner.Reporter``."""
        self.running.pop(record.cell_id, None)
        super().finished(record)
        self.progress.advance(self.task)
        self._show()

    def _show(self) -> None:
        now = " + ".join(self.running.values())
        left = f"{self.left()} left" if self.records else ""
        self.progress.update(self.task, description=f"{self.failed} failed" if self.failed else "", now=now, left=left)


@contextmanager
def make_reporter(plan: Plan, console: Console, quiet: bool) -> Iterator[LineReporter]:
    """A reporter that fits the console."""
    already = f", {len(plan.done)} already done" if plan.done else ""
    console.print(f"{plan.sweep}: {len(plan.todo)} cells to run{already}.", markup=False)
    if quiet or not console.is_terminal:
        yield LineReporter(plan, console, quiet)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("[red]{task.description}"),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plan.todo), now="", left="")
        yield BarReporter(plan, console, quiet, progress, task)


def clock(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
