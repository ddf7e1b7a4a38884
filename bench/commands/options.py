"""Options that several commands take, and how their texts are read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

OutDir = Annotated[Path | None, typer.Option("--out", help="store of the records [results/NAME of the sweep]")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda [cuda where there is one]")]
Only = Annotated[str | None, typer.Option(help="only cells whose label or id matches")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, a TOML value, e.g. seed=3")]
Memory = Annotated[str | None, typer.Option(help="most a worker may take, e.g. 8GiB [70 % of what is free]")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the cells and run nothing")]
CellId = Annotated[
    str | None, typer.Option("--cell", metavar="ID", help="run this one here, to debug it; keep no record")
]
RetryFailed = Annotated[bool, typer.Option(help="try failed cells again: diverged, timed out, out of memory")]
Quiet = Annotated[bool, typer.Option(help="print only failures and the summary")]


def overrides(pairs: list[str] | None) -> dict[str, Any]:
    """What ``--set`` was given: key -> value.

    Raises:
        InputError: one has no equals sign.
    """
    from amaml_core import InputError

    parsed = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair!r} is not of the form KEY=VALUE.")
        try:
            parsed[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            parsed[key.strip()] = text  # a bare word is a string
    return parsed


def size(text: str | None) -> int | None:
    """The bytes that ``--memory`` was given.

    Raises:
        InputError: it is not a size.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    from amaml_core import InputError

    if text is None:
        return None
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise InputError(f"--memory {text!r} is not a size; write it as 2GiB or 500MB.") from None
