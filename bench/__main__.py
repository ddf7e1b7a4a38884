"""``amaml-bench``: list what there is, run sweeps, train, profile, guard against regressions."""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

import typer

from bench.commands import calibrate, fetch, gate, listing, profile, run, train
from bench.commands.console import BAD_INPUT, CELLS_FAILED, DONE, warn

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for name, command in {
    "list": listing.command,
    "run": run.command,
    "train": train.command,
    "gate": gate.command,
    "calibrate": calibrate.command,
    "fetch": fetch.command,
    "profile": profile.command,
}.items():
    app.command(name)(command)


@app.callback()
def _root() -> None:
    """Measure meta-gradient methods: memory, time, accuracy, counts."""


def main() -> NoReturn:
    """Entry point: bad input ends in one sentence and exit code 2; typer ends a Ctrl-C with 130."""
    try:
        app()
        sys.exit(DONE)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = CELLS_FAILED if full else BAD_INPUT
        sentence = f"{error.strerror}: {error.filename or 'the store'}. Nothing that was finished is lost; " + (
            "make room and run the same command again." if full else "choose another --out or mend the path."
        )
    except Exception as error:
        from amaml_core import InputError  # whoever raised one has imported it, and others need not wait
        from bench.records import StoreBusyError

        if not isinstance(error, InputError | StoreBusyError):
            raise
        code, sentence = BAD_INPUT, str(error)
    warn(f"amaml-bench: {sentence}")
    sys.exit(code)


if __name__ == "__main__":
    main()
