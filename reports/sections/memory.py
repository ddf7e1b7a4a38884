"""Memory against trajectory length, and whether its two readings agree."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from reports import words
from reports.analysis.costs import AGREE
from reports.evidence import Evidence
from reports.section import Section
from reports.sections.laws import Cost, law_section
from reports.tables import Table, make_table

MEMORY = Cost(
    probe="memory",
    title="Memory",
    text="Peak bytes of tensors above the resting level during one meta-gradient, and the most that autograd held for "
    "its backward passes; where only the allocator was read, its own peak.",
    quantity="peak memory",
    verb="uses",
    show=words.size,
)


def section(evidence: Evidence) -> Section:
    """How memory grows with the number of steps."""
    made = law_section(evidence, MEMORY)
    return replace(
        made,
        text=" ".join([made.text, *agreement(evidence.readings)]),
        tables=[*made.tables, _disagreements(evidence.readings)],
    )


def agreement(both: pd.DataFrame) -> list[str]:
    """How far the two readings of memory are apart, in a sentence; none where there are none."""
    if both.empty:
        return []
    apart, most = int((both.off > AGREE).sum()), both.off.max()
    if apart:
        verdict = (
            f"on {apart} they are more than {words.share(AGREE)} apart (at most {words.share(most)}): mistrust those"
        )
    else:
        verdict = f"they agree within {words.share(most)}" if most else "they agree to the byte"
    return [
        "Two readings of memory that share no code, of live tensors and of the allocator, were taken of "
        f"{words.plural(len(both), 'update')}; {verdict}."
    ]


def _disagreements(readings: pd.DataFrame) -> Table:
    """The updates whose two readings of memory are too far apart, the farthest first."""
    rows = readings[readings.off > AGREE].sort_values("off", ascending=False)
    return make_table(
        f"Readings more than {words.share(AGREE)} apart",
        (
            {
                "problem": row.problem_label,
                "method": row.label,
                "steps": str(row.inner_steps),
                "where": row.where,
                "live tensors": words.size(row.live),
                "allocator": words.size(row.allocated),
                "apart": words.share(row.off),
            }
            for row in rows.itertuples()
        ),
        ("problem", "method", "where"),
    )
