"""Time against trajectory length."""

from __future__ import annotations

from reports import words
from reports.evidence import Evidence
from reports.section import Section
from reports.sections.laws import Cost, law_section

TIME = Cost(
    probe="time",
    title="Time",
    text="Median seconds of one meta-gradient.",
    quantity="time per update",
    verb="takes",
    show=words.seconds,
)


def section(evidence: Evidence) -> Section:
    """How time grows with the number of steps."""
    return law_section(evidence, TIME)
