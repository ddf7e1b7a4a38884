"""What a table is: every cell a string, so that Markdown and HTML show the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from reports import words


@dataclass(frozen=True)
class Table:
    """A table to show.

    Attributes:
        title: a heading, may be empty.
        frame: strings; the column names are the headings.
        left: columns of words, set flush left; the others hold numbers.
        folded: whether the page shows it only on demand.
    """

    title: str
    frame: pd.DataFrame
    left: frozenset[str] = field(default_factory=frozenset)
    folded: bool = False

    @property
    def columns(self) -> list[str]:
        """The headings."""
        return list(self.frame.columns)

    @property
    def rows(self) -> list[list[str]]:
        """The cells."""
        return self.frame.to_numpy().tolist()


def make_table(title: str, rows: Iterable[dict[str, str]], left: Iterable[str], folded: bool = False) -> Table:
    """A table of these rows; what a row lacks is shown as missing."""
    return Table(title, pd.DataFrame(list(rows)).fillna(words.MISSING), frozenset(left), folded)
