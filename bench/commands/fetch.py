"""``amaml-bench fetch``."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.commands.console import tell


def command(name: Annotated[str, typer.Argument(help="jester, movielens_100k, movielens_1m")]) -> None:
    """Fetch a data set from its publisher, unless it is at hand, and check it."""
    from amaml_core import InputError
    from bench.problems import data

    if name not in data.DATA:
        raise InputError(f"Unknown data set {name!r}; choose one of {', '.join(data.DATA)}.")
    data.show_terms(name, tell)
    path = data.fetch(name)
    data.load(name)
    tell(f"{data.DATA[name].title}: {path}")
