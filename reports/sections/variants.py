"""Contests that depart from the protocol in one thing."""

from __future__ import annotations

from collections.abc import Sequence

from reports import words
from reports.analysis.contests import Contest
from reports.evidence import Evidence
from reports.section import Section
from reports.sections.training import result
from reports.tables import Table, make_table


def section(evidence: Evidence) -> Section:
    """What changes the order of the methods."""
    contests = [contest for contest in evidence.contests if contest.variant]
    shown = [variants_table("Error on the test tasks after adaptation", contests)] if contests else []
    text = "The same contests with one thing changed; the errors are over the same scale unless the normaliser is it."
    return Section("training-variants", "Initialisations: what changes the order", "", text, shown)


def variants_table(title: str, contests: Sequence[Contest]) -> Table:
    """One row a setting that departs from the usual, one column a method."""
    names = list(dict.fromkeys(name for contest in contests for name in contest.runs))
    rows = [
        {"setting": contest.title, "steps": str(contest.test_steps), "updates": words.count(contest.outer_updates)}
        | {name: result(contest.runs.get(name), contest) for name in names}
        for contest in contests
    ]
    return make_table(title, rows, ("setting",))
