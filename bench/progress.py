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
    TimeRemainingColumn,
)

from bench.records import Cell, Record

HEADLINES = ("outer_update_seconds", "peak_live_bytes", "peak_allocated_bytes", "rel_error_flow", "flops")


class LineReporter:
    """One line a finished cell."""

    def __init__(self, total: int, console: Console, quiet: bool) -> None:
        self.total, self.console, self.quiet = total, console, quiet
        self.finished_count, self.failed, self.began = 0, 0, time.monotonic()

    def started(self, cell: Cell) -> None:
        """See ``runner.Reporter``."""

    def finished(self, record: Record) -> None:
        """See ``runner.Reporter``."""
        self.finished_count += 1
        fine = record.status == "ok"
        self.failed += not fine
        if self.quiet and fine:
            return
        left = (time.monotonic() - self.began) / self.finished_count * (self.total - self.finished_count)
        numbers = " ".join(f"{name}={record.metrics[name]:.4g}" for name in HEADLINES if name in record.metrics)
        count = f"{self.finished_count:>{len(str(self.total))}}/{self.total}"
        text = f"{record.cell.label}  {numbers if fine else record.reason}  ({clock(left)} left)"
        self.console.print(f"[{count}] {record.status:<8} {record.duration_s:6.1f} s  {text}", markup=False)


class BarReporter(LineReporter):
    """The same lines above a live bar that names the running cells."""

    def __init__(self, total: int, console: Console, quiet: bool, progress: Progress, task: TaskID) -> None:
        super().__init__(total, console, quiet)
        self.progress, self.task = progress, task
        self.running: dict[str, str] = {}

    def started(self, cell: Cell) -> None:
        """See ``runner.Reporter``."""
        self.running[cell.cell_id] = cell.label
        self._show()

    def finished(self, record: Record) -> None:
        """See ``runner.Reporter``."""
        self.running.pop(record.cell_id, None)
        super().finished(record)
        self.progress.advance(self.task)
        self._show()

    def _show(self) -> None:
        now = " + ".join(self.running.values())
        self.progress.update(self.task, description=f"{self.failed} failed" if self.failed else "", now=now)


@contextmanager
def make_reporter(sweep: str, total: int, done: int, console: Console, quiet: bool) -> Iterator[LineReporter]:
    """A reporter that fits the console."""
    console.print(f"{sweep}: {total} cells to run" + (f", {done} already done" if done else "") + ".", markup=False)
    if quiet or not console.is_terminal:
        yield LineReporter(total, console, quiet)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[red]{task.description}"),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield BarReporter(total, console, quiet, progress, progress.add_task("", total=total, now=""))


def clock(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
