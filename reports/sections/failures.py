"""What is not ok."""

from __future__ import annotations

import pandas as pd

from reports.evidence import Evidence
from reports.section import Section
from reports.tables import Table, make_table


def section(evidence: Evidence) -> Section:
    """Every failure of every sweep."""
    failed = evidence.frame[evidence.frame.status != "ok"]
    shown = [_table(failed)] if len(failed) else []
    return Section("failures", "Failures", "", "Every record that is not ok, and why.", shown)


def _table(rows: pd.DataFrame) -> Table:
    rows = rows.sort_values(["problem_label", "probe", "method", "horizon", "inner_steps", "label", "where", "cell_id"])
    return make_table(
        "",
        (
            {
                "problem": row.problem_label,
                "probe": row.probe,
                "method": row.label,
                "steps": str(row.inner_steps),
                "T": f"{row.horizon:g}",
                "where": row.where,
                "status": row.status,
                "reason": row.reason or "no reason given",
            }
            for row in rows.itertuples()
        ),
        ("problem", "probe", "method", "where", "status", "reason"),
    )
