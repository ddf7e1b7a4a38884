"""``amaml-bench gate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.console import INTERRUPTED, err, out, tell
from bench.commands.options import Device, Quiet

if TYPE_CHECKING:
    from bench.gate.verdict import Verdict


def command(
    accept: Annotated[
        str | None, typer.Option(metavar="REASON", help="make what is measured now the baselines, for this reason")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="REV", help="compare times with this revision instead; takes ten minutes")
    ] = None,
    blocks: Annotated[int, typer.Option(help="of the comparison of times; 10 cases need 10 at least")] = 10,
    out_dir: Annotated[Path, typer.Option("--out", help="records and verdict")] = Path("results") / "gate",
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Fail where a counter, memory or a gradient is worse than its baseline, or the head slower than a revision."""
    from amaml_core import InputError

    if accept is not None and against is not None:
        raise InputError("--accept is for baselines and --against needs none; use one of them.")
    if accept is not None and not accept.strip():
        raise InputError("--accept needs a reason: say why the new values are right.")
    found = _times(against, blocks, out_dir) if against is not None else _counters(accept, out_dir, device, quiet)
    found.publish(out_dir)
    tell(found.text())
    raise typer.Exit(found.exit_code)


def _counters(accept: str | None, out_dir: Path, device: str | None, quiet: bool) -> Verdict:
    from bench import spec
    from bench.gate import counters
    from bench.gate.verdict import Verdict
    from bench.harness import runner
    from bench.harness.environment import choose_device
    from bench.harness.progress import make_reporter
    from bench.records import Store

    loaded = spec.load_spec(counters.SWEEP)
    cells = spec.expand(loaded, device=choose_device(device))
    counters.cases(cells)
    baselines = counters.read_baselines(counters.BASELINES)
    store = Store(out_dir)
    plan = replace(runner.plan(counters.SWEEP, cells, store), todo=cells, done=[])  # what was measured may be stale
    with make_reporter(plan, out(), quiet) as reporter:
        records, interrupted = runner.run(plan, store, timeout_s=loaded.timeout_s, reporter=reporter, say=err().print)
    if interrupted:
        err().print("Interrupted: there is no verdict. Run the same command again.")
        raise typer.Exit(INTERRUPTED)
    if accept is not None:
        made = counters.accept(records, baselines, accept)
        tell(counters.diff(baselines, made) or "The baselines are as they were.")
        counters.write_baselines(made, counters.BASELINES)
        baselines = made
    return Verdict("gate", counters.judge(records, baselines))


def _times(revision: str, blocks: int, out_dir: Path) -> Verdict:
    from amaml_core import InputError
    from bench.gate import ruling, times, turns
    from bench.gate.verdict import Verdict

    title = f"gate --against {revision}"
    if not ruling.FEWEST_BLOCKS <= blocks <= ruling.MOST_BLOCKS:
        fewest, most = ruling.FEWEST_BLOCKS, ruling.MOST_BLOCKS
        raise InputError(f"--blocks {blocks}: with fewer than {fewest} no case can be called slower; at most {most}.")
    try:
        checks, notes = times.compare(revision, blocks, out_dir, tell)
    except turns.NoVerdictError as error:
        return Verdict(title, [], [str(error)])
    return Verdict(title, checks, notes)
