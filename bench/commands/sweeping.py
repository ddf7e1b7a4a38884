"""What ``run`` and ``train`` share: a sweep's cells into a store."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import get_args

import typer
from rich.markup import escape

from amaml_core import InputError
from bench.commands.console import CELLS_FAILED, INTERRUPTED, err, out, tell, warn
from bench.commands.options import size
from bench.harness import runner, worker
from bench.harness.estimate import estimate
from bench.harness.progress import clock, make_reporter
from bench.problems import make_problem
from bench.records import Cell, Status, Store, canonical_json
from bench.spec import SweepSpec


def sweep(
    loaded: SweepSpec,
    cells: list[Cell],
    out_dir: Path | None,
    memory: str | None,
    cell_id: str | None,
    *,
    dry_run: bool,
    retry_failed: bool,
    quiet: bool,
) -> None:
    """Run these cells of a sweep, or say what there is to run.

    Raises:
        typer.Exit: some cells crashed or timed out, or it was interrupted.
        InputError: an option cannot be understood.
    """
    if cell_id is not None:
        _run_here(cells, cell_id)
        return
    memory_bytes = size(memory)
    store = Store(out_dir or Path("results") / loaded.name)
    plan = runner.plan(loaded.name, cells, store, retry_failed=retry_failed)
    for complaint in plan.complaints:
        err().print(escape(complaint))
    if dry_run:
        waiting = {cell.cell_id for cell in plan.todo}
        for cell in cells:
            tell(f"{cell.cell_id} {'todo' if cell.cell_id in waiting else 'done'} {cell.label}")
        expected = estimate(plan.todo, store.read()[0])
        told = f"{len(cells)} cells, {len(plan.todo)} to run: {clock(expected.seconds)} one after the other"
        tell(f"{told}, a guess for {expected.guessed} of them." if expected.guessed else f"{told}.")
        return
    _prepare(plan.todo)
    with make_reporter(plan, out(), quiet) as reporter:
        records, interrupted = runner.run(
            plan, store, timeout_s=loaded.timeout_s, memory_bytes=memory_bytes, reporter=reporter, say=err().print
        )
    everything = plan.done + records
    counts = {s: n for s in get_args(Status) if (n := sum(record.status == s for record in everything))}
    out().print(
        f"{store.path}: {len(everything)} of {len(cells)} cells: {', '.join(f'{n} {s}' for s, n in counts.items())}."
    )
    if interrupted and len(everything) < len(cells):
        err().print("Interrupted. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED)
    if counts.get("crashed", 0) + counts.get("timeout", 0):
        err().print("Some cells crashed or timed out; the reasons are above and in the records. To see one: --cell ID.")
        raise typer.Exit(CELLS_FAILED)


def _prepare(cells: Iterable[Cell]) -> None:
    """Have each problem get what it needs; what fails is told, and its cells will be skipped for that reason."""
    problems = {canonical_json([cell.problem, cell.problem_options]): cell for cell in cells}
    for cell in problems.values():
        try:
            make_problem(cell.problem, cell.problem_options).prepare(_say_once)
        except InputError as error:
            _say_once(str(error))


@cache
def _say_once(sentence: str) -> None:
    warn(sentence)


def _run_here(cells: list[Cell], cell_id: str) -> None:
    """Run one cell in this process, so that a debugger or a traceback reaches it."""
    found = [cell for cell in cells if cell.cell_id.startswith(cell_id)]
    if len(found) != 1:
        raise InputError(f"--cell {cell_id!r} fits {len(found)} cells; take one id from --dry-run.")
    (cell,) = found
    tell(cell.label)
    answer = worker.run({"cell": cell.model_dump(), "threads": runner.threads_for(cell.probe, cell.device)})
    out().print_json(data=answer)
