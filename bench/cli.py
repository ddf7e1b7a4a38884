"""``amaml-bench``: list what there is, run sweeps."""

from __future__ import annotations

import errno
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer
from rich.console import Console
from rich.markup import escape

from amaml_core import METHODS, InputError
from bench import environment, runner, spec
from bench.problems import PROBLEMS
from bench.progress import make_reporter
from bench.records import Status, Store, StoreBusyError

DONE, BAD_INPUT, CELLS_FAILED, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback()
def _root() -> None:
    """Measure meta-gradient methods: memory, time, accuracy, counts."""


@app.command("list")
def list_command(what: Annotated[str, typer.Argument(help="methods, problems or sweeps")]) -> None:
    """List the methods, problems or sweeps, a line each."""
    if what == "methods":
        lines = [f"{name:<12} {_first_line(method.__doc__)}" for name, method in METHODS.items()]
    elif what == "problems":
        lines = [f"{name:<12} {problem.text}" for name, problem in PROBLEMS.items()]
    elif what == "sweeps":
        lines = [f"{name:<12} {spec.load_spec(name).description}" for name in spec.list_sweeps()]
    else:
        raise InputError(f"Nothing to list under {what!r}; choose methods, problems or sweeps.")
    out.print("\n".join(lines), markup=False)


@app.command()
def run(
    sweep: Annotated[str, typer.Argument(help="a sweep's name, or a TOML file")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="store of the records [results/SWEEP]")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda [cuda where there is one]")] = None,
    only: Annotated[str | None, typer.Option(help="only cells whose label or id matches")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, a TOML value, e.g. seed=3")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the cells and run nothing")] = False,
    retry_failed: Annotated[
        bool, typer.Option(help="run cells again that diverged, timed out or ran out of memory")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="print only failures and the summary")] = False,
) -> None:
    """Run a sweep. Running it again goes on where it stopped."""
    chosen = environment.choose_device(device)
    loaded = spec.load_spec(sweep, _overrides(set_ or []))
    cells = spec.expand(loaded, device=chosen, only=only)
    store = Store(out_dir or Path("results") / loaded.name)
    plan = runner.plan(loaded.name, cells, store, retry_failed=retry_failed)
    for complaint in plan.complaints:
        err.print(escape(complaint))
    if dry_run:
        waiting = {cell.cell_id for cell in plan.todo}
        for cell in cells:
            out.print(f"{cell.cell_id} {'todo' if cell.cell_id in waiting else 'done'} {cell.label}", markup=False)
        out.print(f"{len(cells)} cells, {len(plan.todo)} to run.")
        return
    with make_reporter(loaded.name, len(plan.todo), len(plan.done), out, quiet) as reporter:
        records, interrupted = runner.run(plan, store, timeout_s=loaded.timeout_s, reporter=reporter, say=err.print)
    everything = plan.done + records
    counts = {s: n for s in get_args(Status) if (n := sum(record.status == s for record in everything))}
    out.print(
        f"{store.path}: {len(everything)} of {len(cells)} cells: {', '.join(f'{n} {s}' for s, n in counts.items())}."
    )
    if interrupted and len(everything) < len(cells):
        err.print("Interrupted. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED)
    if counts.get("crashed", 0) + counts.get("timeout", 0):
        err.print("Some cells crashed or timed out; the reasons are above and in the records.")
        raise typer.Exit(CELLS_FAILED)


def _overrides(pairs: list[str]) -> dict[str, Any]:
    parsed = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair!r} is not of the form KEY=VALUE.")
        try:
            parsed[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[key.strip()] = text  # a bare word is a string
    return parsed


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().splitlines()[0]


def main() -> NoReturn:
    """Entry point: bad input ends in one sentence and exit code 2; typer ends a Ctrl-C with 130."""
    try:
        app()
        sys.exit(DONE)
    except (InputError, StoreBusyError) as error:
        code, sentence = BAD_INPUT, str(error)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = CELLS_FAILED if full else BAD_INPUT
        sentence = f"{error.strerror}: {error.filename or 'the store'}. Nothing that was finished is lost; " + (
            "make room and run the same command again." if full else "choose another --out or mend the path."
        )
    err.print(f"amaml-bench: {sentence}", markup=False)
    sys.exit(code)
