"""``amaml-bench train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import CellId, Device, DryRun, Memory, Only, OutDir, Quiet, RetryFailed, Set, overrides


def command(
    experiment: Annotated[str, typer.Argument(help="regression, ratings, or FILE.py:NAME, a problem of your own")],
    quick: Annotated[bool, typer.Option("--quick", help="one seed and few outer updates: to see it work")] = False,
    out_dir: OutDir = None,
    device: Device = None,
    only: Only = None,
    set_: Set = None,
    memory: Memory = None,
    dry_run: DryRun = False,
    cell_id: CellId = None,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
    steps: Annotated[int, typer.Option(help="of your own problem: inner steps K")] = 5,
    inner_lr: Annotated[float, typer.Option(help="of your own problem: inner learning rate")] = 0.01,
    outer_lr: Annotated[float, typer.Option(help="of your own problem: Adam's learning rate")] = 1e-3,
    minutes: Annotated[float, typer.Option(help="of your own problem: for all methods together")] = 5.0,
) -> None:
    """Meta-train by every method and test what each has learned. Running it again goes on where it stopped."""
    from bench import spec
    from bench.commands import sweeping
    from bench.harness.environment import choose_device

    if ":" in experiment:
        _own(experiment, out_dir, choose_device(device), steps, inner_lr, outer_lr, 60 * minutes)
        return
    loaded = spec.load_experiment(experiment, overrides(set_), quick=quick)
    cells = spec.expand(loaded, device=choose_device(device), only=only)
    sweeping.sweep(loaded, cells, out_dir, memory, cell_id, dry_run=dry_run, retry_failed=retry_failed, quiet=quiet)


def _own(
    factory: str, out_dir: Path | None, device: str, steps: int, inner_lr: float, outer_lr: float, seconds: float
) -> None:
    import torch
    from rich.console import Console
    from rich.markup import escape

    from amaml_core import InputError
    from bench.advise import trial
    from bench.commands.console import INTERRUPTED, NO_VERDICT, err, out, tell

    if not seconds > 0:
        raise InputError(f"--minutes {seconds / 60:g} leaves no time; give more.")
    directory = out_dir or Path("results") / f"train-{factory.rpartition(':')[2]}"
    own = {"steps": steps, "inner_lr": inner_lr, "outer_lr": outer_lr, "seconds": seconds}
    try:
        problem, trials = trial.run(
            factory, **own, directory=directory, device=device, say=lambda note: err().print(escape(note))
        )
    except KeyboardInterrupt:
        err().print("Interrupted. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from None
    Console(width=max(out().width, 120)).print(trial.table(trials))
    for line in trial.verdict(trials):
        tell(line)
    if all(one.score == float("inf") for one in trials):
        raise typer.Exit(NO_VERDICT)
    best = min(trials, key=lambda one: one.score)
    torch.save(problem.unflatten(best.theta), directory / "best.pt")
    tell(f"Its state_dict: {directory / 'best.pt'}.")
