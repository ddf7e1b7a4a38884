"""``amaml-bench profile``."""

from __future__ import annotations

import time
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.console import CELLS_FAILED, INTERRUPTED, NO_VERDICT, err, out, tell
from bench.commands.options import Device, Quiet, size

END_SECONDS = 1.0  # for what a profile says when it is over


def command(
    factory: Annotated[
        str | None, typer.Argument(metavar="FILE.py:NAME", help="a function that makes your problem and tasks")
    ] = None,
    template: Annotated[bool, typer.Option("--template", help="print a file to start from")] = False,
    steps: Annotated[str, typer.Option(help="trajectory lengths K to try")] = "5,20,50",
    inner_lr: Annotated[float, typer.Option(help="inner learning rate; the horizon is K times it")] = 0.01,
    memory: Annotated[str, typer.Option(help="what one outer update may take")] = "2GiB",
    minutes: Annotated[float, typer.Option(help="what the whole profile may take")] = 3.0,
    tolerance: Annotated[float, typer.Option(help="relative gradient error that you can live with")] = 0.05,
    device: Device = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="store of the records [results/profile-NAME]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the recommendation as JSON, and nothing else")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure all methods on your own model and recommend one. Running it again goes on where it stopped."""
    if template:
        print((files("bench") / "advise" / "template.py").read_text(), end="")
        return
    import psutil
    from rich.console import Console
    from rich.markup import escape

    from amaml_core import InputError
    from bench.advise import advice, profile, rounds
    from bench.harness.environment import choose_device
    from bench.harness.progress import make_reporter
    from bench.records import Store

    if factory is None:
        raise InputError(
            "Name a function as FILE.py:NAME; start from `amaml-bench profile --template > my_problem.py`."
        )
    if not minutes > 0:
        raise InputError(f"--minutes {minutes:g} leaves no time; give more.")
    chosen = choose_device(device)
    dtype = profile.check(factory, chosen, lambda note: err().print(escape(note)))
    lengths = _lengths(steps)
    store = Store(out_dir or Path("results") / f"profile-{factory.rpartition(':')[2]}")
    since = time.time() - psutil.Process().create_time()  # this program's own start counts too
    deadline = time.monotonic() + 60 * minutes - since - END_SECONDS
    memory_bytes = size(memory) or 0
    question = rounds.Question(factory, lengths, inner_lr, chosen, dtype, memory_bytes, tolerance)
    reporting = partial(make_reporter, console=err() if as_json else out(), quiet=quiet)
    made = rounds.Profile(question, store, deadline, reporting, lambda note: err().print(escape(note)))
    made.run()
    found, advised = made.found, made.advice
    document = advised.document(found, factory, memory_bytes, tolerance)
    document.write(store.directory)
    if as_json:
        print(document.text())
    else:
        tell("")
        Console(width=max(out().width, 120)).print(advice.table(found))  # a row a line, also where nobody looks
        tell("")
        for line in advised.told:
            tell(line)
        if missing := len(made.cells) - len(made.records):
            tell(f"Not measured, for want of time or memory or after a failure: {missing} of {len(made.cells)} cells.")
        tell(f"The records: {store.path}; `amaml-report build {store.directory}` makes the page.")
    if made.interrupted:
        err().print("Interrupted. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED)
    if advised.best is None:
        raise typer.Exit(NO_VERDICT)
    if failed := sum(record.status in ("crashed", "timeout") for record in made.records):
        err().print(f"{failed} cells crashed or timed out; the reasons are above and in the records.")
        raise typer.Exit(CELLS_FAILED)


def _lengths(text: str) -> list[int]:
    from amaml_core import InputError

    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise InputError(f"--steps {text!r} is not a list of whole numbers such as 5,20,50.") from None
