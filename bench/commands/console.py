"""Where commands write, and the codes that they end with."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

DONE, BAD_INPUT, CELLS_FAILED, NO_VERDICT, INTERRUPTED = 0, 2, 3, 4, 130


@cache
def out() -> Console:
    """What a command is asked for."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


@cache
def err() -> Console:
    """What people should know besides."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print a text as it is to standard output."""
    out().print(text, markup=False)


def warn(text: str) -> None:
    """Print a text as it is to standard error."""
    err().print(text, markup=False)
