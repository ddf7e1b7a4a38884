"""``amaml-bench list``."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.commands.console import tell


def command(what: Annotated[str, typer.Argument(help="methods, problems, sweeps or data")]) -> None:
    """List the methods, problems, sweeps or data sets, a line each."""
    from amaml_core import METHODS, InputError
    from bench import plugins, spec
    from bench.peers import PEERS
    from bench.problems import PROBLEMS, data

    plugins.load()
    if what == "methods":
        lines = [f"{name:<12} {_first_line(method.__doc__)}" for name, method in METHODS.items()]
        lines += ["", "Peers, which are what you would use instead of this library:"]
        lines += [f"{name:<14} {_first_line(peer.__doc__)}" for name, peer in PEERS.items()]
    elif what == "problems":
        lines = [f"{name:<16} {problem.text}" for name, problem in PROBLEMS.items()]
    elif what == "sweeps":
        lines = [f"{name:<16} {spec.load_spec(name).description}" for name in spec.list_sweeps()]
    elif what == "data":
        lines = [f"{name:<16} {one.title}: {one.terms}" for name, one in data.DATA.items()]
    else:
        raise InputError(f"Nothing to list under {what!r}; choose methods, problems, sweeps or data.")
    tell("\n".join(lines))


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().splitlines()[0]
