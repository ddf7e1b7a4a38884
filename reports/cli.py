"""``amaml-report``: build the page, compare two stores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

BAD_INPUT, INTERRUPTED = 2, 130

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _root() -> None:
    """Show what amaml-bench measured."""


@app.command("build")
def build_command(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="stores, or directories of stores")],
    out: Annotated[Path, typer.Option("--out", help="directory of the report")] = Path("report"),
) -> None:
    """Make the report of all records in these directories. The page is OUT/index.html."""
    with _exit_codes():  # the imports are slow: here, --help stays quick and an interrupt is a quiet one
        from reports.load import load
        from reports.render import build

        results = load(directories)
        for note in results.notes:
            print(f"amaml-report: {note}", file=sys.stderr)
        print(build(results, out))


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(help="a store")], b: Annotated[Path, typer.Argument(help="another")]
) -> None:
    """Print the metrics of all cells that two stores share, side by side, in Markdown."""
    with _exit_codes():
        from reports.compare import compare, markdown
        from reports.load import load

        stores = load([a]), load([b])
        for note in [*stores[0].notes, *stores[1].notes]:
            print(f"amaml-report: {note}", file=sys.stderr)
        table = compare(*stores)
        print(markdown(table))
        alone = [len({r.cell_id for r in store.records} - set(table.cell)) for store in stores]
        print(f"\nCells in both: {table.cell.nunique()}; only in A: {alone[0]}; only in B: {alone[1]}.")


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Bad input ends in one sentence and its exit code, an interrupt in its own."""
    try:
        from reports.load import InputError

        try:
            yield
        except InputError as error:
            print(f"amaml-report: {error}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from None
        except BrokenPipeError:  # the reader (head, less) has seen enough; nothing may be flushed to it at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            print(
                f"amaml-report: {error.filename or 'output'}: {error.strerror}; choose another path.", file=sys.stderr
            )
            raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def main() -> None:
    """Entry point: 0 done, 2 bad input, 130 interrupted."""
    app()
