"""What a section of the report is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from reports.figures import Figure
from reports.tables import Table


@dataclass(frozen=True)
class Notice:
    """What is to be read before anything else on the page.

    Attributes:
        title: the answer, in a line.
        lead: a sentence below it, may be empty.
        facts: the numbers that matter most: what they are, and their values.
        code: to copy, may be empty.
        points: what else there is to say, in sentences.
    """

    title: str
    lead: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)
    code: str = ""
    points: list[str] = field(default_factory=list)


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
        notices: of it; a section with any opens the page.
    """

    id: str
    title: str
    target: str
    text: str
    tables: list[Table]
    figures: list[Figure] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
