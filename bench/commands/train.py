"""``amaml-bench train``."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.commands.options import CellId, Device, DryRun, Memory, Only, OutDir, Quiet, RetryFailed, Set, overrides


def command(
    experiment: Annotated[str, typer.Argument(help="regression or ratings")],
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
) -> None:
    """Meta-train by every method and test what each has learned. Running it again goes on where it stopped."""
    from bench import spec
    from bench.commands import sweeping
    from bench.harness.environment import choose_device

    loaded = spec.load_experiment(experiment, overrides(set_), quick=quick)
    cells = spec.expand(loaded, device=choose_device(device), only=only)
    sweeping.sweep(loaded, cells, out_dir, memory, cell_id, dry_run=dry_run, retry_failed=retry_failed, quiet=quiet)
