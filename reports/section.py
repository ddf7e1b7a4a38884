"""What a section of the report is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from reports.figures import Figure
from reports.tables import Table


@dataclass(frozen=True)
class Section:
    """One section of the report.

    Attributes:
        id: its anchor.
        title: its heading.
        target: what makes its records; a section without a row to show is only named, with this.
        text: how to read it.
        tables: of it; those without a row are not shown.
        figures: of it.
        findings: what its numbers say, in sentences computed from them; none about what was not measured.
    """

    id: str
    title: str
    target: str
    text: str
    tables: list[Table]
    figures: list[Figure] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
