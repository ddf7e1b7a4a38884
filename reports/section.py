"""What a section of the report is made of."""

from __future__ import annotations

from dataclasses import dataclass

from reports.figures import Figure
from reports.tables import Table


@dataclass(frozen=True)
class Section:
    """One section of the report.

    Attributes:
        id: its anchor.
        title: its heading.
        target: what makes its records; a section without tables is only named, with this.
        text: how to read it.
        tables: of it.
        figures: of it.
    """

    id: str
    title: str
    target: str
    text: str
    tables: list[Table]
    figures: list[Figure]
