"""The error of A-MAML's gradient on CosMixture (E2)."""

from __future__ import annotations

import pandas as pd

from reports import words
from reports.analysis.errors import cosmixture_study, error_points, smallest_stable
from reports.evidence import Evidence
from reports.figures import file_name
from reports.paper import published
from reports.section import Section
from reports.sections.errors import by_horizon, errors_figure, errors_table
from reports.tables import Table


def section(evidence: Evidence) -> Section:
    """Errors, at the horizons of the paper and at others, and what stays stable."""
    rows = cosmixture_study(evidence.usual)
    shown, made = [], []
    paper = published("table5")
    for _, group in rows.groupby("setting"):
        label = group.problem_label.iloc[0]
        points = error_points(group)
        in_paper = points.horizon.isin({horizon for horizon, _ in paper["amaml"]})
        for title, part, beside in (
            ("horizons of the paper", points[in_paper], paper),
            ("other horizons", points[~in_paper], {}),
        ):
            if len(part):
                shown.append(errors_table(f"{label}: relative error, {title}", part, beside))
        shown.append(_stability_table(f"{label}: smallest stable number of states", points))
        about = f"{label}: error of A-MAML's gradient against states."
        made.append(errors_figure(points, paper, file_name(label), about))
    return Section(
        "cosmixture",
        "Gradient accuracy on CosMixture (E2)",
        "bench-accuracy",
        "Relative L2 error of A-MAML's meta-gradient to a converged float64 gradient of the flow: mean ± standard "
        "deviation over initialisations. Published: Li et al. 2023, table 5, whose reference is the method itself on "
        "1,000 states. Explicit schemes on few states blow up at long horizons; such cells read diverged. The smallest "
        "stable number of states is the smallest that was fine together with all larger ones that were measured.",
        shown,
        [figure for figure in made if figure],
        _findings(rows),
    )


def _stability_table(title: str, points: pd.DataFrame) -> Table:
    """The smallest stable number of states of each series at each horizon."""
    return by_horizon(title, points, {key: str(states) for key, states in smallest_stable(points).items()})


def _findings(rows: pd.DataFrame) -> list[str]:
    told = []
    points = error_points(rows)
    paper = published("table5")["amaml"]
    fine = points[(points.backward == "modified_euler") & points["mean"].notna()]
    both = [row for row in fine.itertuples() if (row.horizon, row.num_states) in paper]
    if both:
        row = max(both, key=lambda row: (row.horizon, -abs(row.num_states - 100), row.dtype))
        told.append(
            f"On CosMixture at T = {row.horizon:g} with {row.num_states} states in {row.dtype} the error of "
            f"{row.series} is {words.error(row.mean)}; published: {words.error(paper[row.horizon, row.num_states][0])}."
        )
    for _, group in points.groupby("setting"):
        stable, longest = smallest_stable(group), group.horizon.max()
        needs: dict[int, list[str]] = {}
        for (horizon, series, _), states in stable.items():
            if horizon == longest:
                needs.setdefault(states, []).append(series)
        if needs:
            each = "; ".join(f"{states} for {', '.join(dict.fromkeys(needs[states]))}" for states in sorted(needs))
            told.append(f"On CosMixture at T = {longest:g} the fewest states that stay stable are {each}.")
    return told
