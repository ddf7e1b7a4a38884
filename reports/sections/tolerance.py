"""A flow's gradient to a tolerance of its own, beside settings chosen by hand (sweep tolerance)."""

from __future__ import annotations

import pandas as pd
from matplotlib.lines import Line2D

from reports import words
from reports.analysis import tolerance
from reports.analysis.arithmetic import ratio
from reports.evidence import Evidence
from reports.figures import Figure, canvas_of, drawn, legend, log_axis, styles
from reports.section import Section
from reports.tables import make_table

RECHECKED = 20  # updates after which a setting is looked for again


def section(evidence: Evidence) -> Section:
    """Met or not, and the price beside the best setting by hand."""
    table = tolerance.cells(evidence.frame)
    mine = tolerance.compared(table)
    rows = [
        {
            "problem": row.problem_label,
            "T": f"{row.horizon:g}",
            "grad_rtol": f"{row.asked:g}",
            "met": f"{row.met:.0f} of {row.updates:.0f}",
            "error": words.error(row.error),
            "worst error": words.error(row.worst),
            "first update": f"{row.first:.0f}",
            "later updates": f"{row.price:.0f}",
            "by hand": words.MISSING if row.chosen != row.chosen else f"{row.chosen:.0f}",
            "later / by hand": words.times(ratio(row.price, row.chosen)),
        }
        for row in mine.itertuples()
    ]
    return Section(
        "tolerance",
        "A gradient to a tolerance",
        "bench-honesty",
        "grad_rtol finds scheme, steps and tolerances of A-MAML itself, at the first update, and keeps them for "
        f"the next {RECHECKED}. Prices are in gradients of the inner loss (a Hessian-vector product is two). By hand: "
        "the least price of a tolerance or number of states that somebody who knew all errors would have chosen, over "
        "three schemes, at the same error. An error is the geometric mean over the draws.",
        [make_table("Prices, in gradients an update", rows, ("problem", "T", "grad_rtol"), folded=len(rows) > 12)],
        [figure] if (figure := _figure(table)) else [],
        _findings(mine),
    )


def _figure(table: pd.DataFrame) -> Figure | None:
    """Error against price, a panel a problem at its middle horizon."""
    if not len(table) or not table.asked.notna().any():
        return None
    panels = []
    for label, rows in table.groupby("problem_label", sort=False):
        horizons = sorted(rows.horizon.unique())
        panels.append((label, rows[rows.horizon == horizons[len(horizons) // 2]]))
    names = sorted(set(table[table.asked.isna()].scheme))
    look = styles([("amaml", name) for name in names])
    asked = {"color": "#D55E00", "marker": "*", "markersize": 12}
    with canvas_of(1, len(panels), (max(8.0, 3.1 * len(panels)), 4.0)) as (canvas, grid):
        for axes, (label, rows) in zip(grid.flat, panels, strict=True):
            log_axis(axes.xaxis, "gradients an update", rows.price, lambda value: f"{value:.0f}")
            log_axis(axes.yaxis, "", [1e-9, 1])
            seen = rows[rows.error < 1]
            for scheme, line in seen[seen.asked.isna()].groupby("scheme"):
                line = line.sort_values("price")
                axes.plot(line.price, line.error, lw=1.1, markersize=6, **look[scheme])
            mine = seen[seen.asked.notna()].sort_values("price")
            axes.plot(mine.price, mine.error, lw=0, **asked)
            for row in mine.itertuples():
                axes.annotate(f"{row.asked:g}", (row.price, row.error), (7, 5), textcoords="offset points", fontsize=9)
            name = label.replace("(", "\n(", 1)
            axes.set_title(f"{name}, T = {rows.horizon.iloc[0]:g}", fontsize=10)
        canvas.supylabel("relative error to the gradient of the flow", fontsize=11)
        handles = [Line2D([], [], label=f"{name}, chosen by hand", **form) for name, form in look.items()]
        legend(
            canvas,
            [*handles, Line2D([], [], lw=0, label="grad_rtol, as labelled", **asked)],
            4 if len(panels) > 2 else 2,
        )
        caption = (
            "Error against price of an update after the first. Lower left is better: stars are gradients to a "
            "grad_rtol, lines are tolerances or numbers of states chosen by hand."
        )
        return drawn(canvas, "tolerance", caption, wide=True)


def _findings(mine: pd.DataFrame) -> list[str]:
    if not len(mine):
        return []
    met, updates = mine.met.sum(), mine.updates.sum()
    factors = (mine.price / mine.chosen).dropna()
    amortised = ((mine["first"] + RECHECKED * mine.price) / (1 + RECHECKED) / mine.chosen).dropna()
    found = f"A grad_rtol of {mine.asked.max():g} to {mine.asked.min():g} is met in {met:.0f} of {updates:.0f} updates"
    if len(factors):
        found += (
            f"; an update after the first takes {words.times(factors.median())} the gradients of the best setting by "
            f"hand at the same error (median; at most {words.times(factors.max())}), with the search among "
            f"{RECHECKED + 1} updates {words.times(amortised.median())}"
        )
    return [found + "."]
