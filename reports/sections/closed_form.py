"""The adjoint's error where the gradient is known exactly (E1)."""

from __future__ import annotations

import json

import pandas as pd

from reports.analysis.errors import closed_form_study, error_points, orders
from reports.evidence import Evidence
from reports.figures import file_name
from reports.load import plain
from reports.paper import published
from reports.section import Section
from reports.sections.errors import by_horizon, errors_figure, errors_table
from reports.tables import Table

PAPER_ODE = "forced_linear"  # the closed form of the paper; the others are ours


def section(evidence: Evidence) -> Section:
    """Errors and orders, one ODE after the other."""
    rows = closed_form_study(evidence.usual)
    shown, made = [], []
    for setting, group in sorted(rows.groupby("setting"), key=lambda item: PAPER_ODE not in item[0]):
        ode = plain(json.loads(setting)[1].get("ode", PAPER_ODE))
        paper = published("table4") if ode == PAPER_ODE else {}
        points = error_points(group)
        name = f"{ode} (the ODE of the paper)" if paper else ode
        shown.append(errors_table(f"{name}: relative error", points, paper))
        if orders(points):
            shown.append(_orders_table(f"{name}: observed order", points))
        about = f"Closed form {name}: relative error against states."
        made.append(errors_figure(points, paper, file_name("closed form", ode), about))
    return Section(
        "closed-form",
        "Closed-form accuracy (E1)",
        "bench-accuracy",
        "Relative L2 error of dL/dy₀ where it is known exactly: mean ± standard deviation over random y₀. "
        "Published: Li et al. 2023, table 4, in float32. The order is observed between the last two numbers of states "
        "(in brackets) whose errors are above 100 units of rounding; modified Euler and Heun have order 2, Euler 1, "
        "rk4 4. On this ODE the adjoint's error can be worked out by hand for any scheme: the published adjoint column "
        "at T = 1 and 2 is that of the explicit midpoint rule on one interval fewer, not of modified Euler, and at "
        "T = 0.5 that error stands in the column headed autodiff, so that the two seem to be swapped there.",
        shown,
        [figure for figure in made if figure],
        _findings(rows),
    )


def _orders_table(title: str, points: pd.DataFrame) -> Table:
    """The observed order of each series at each horizon, and the states between which it was observed."""
    return by_horizon(title, points, {key: f"{order:.2f} ({span})" for key, (order, span) in orders(points).items()})


def _findings(rows: pd.DataFrame) -> list[str]:
    rows = rows[(rows.setting.str.contains('"forced_linear"')) & (rows.method == "adjoint")]
    points = error_points(rows[(rows.backward == "modified_euler") & (rows.dtype == "float64")])
    found = orders(points)
    if not found:
        return []
    key = max(found)
    return [
        f"On the paper's closed form at T = {key[0]:g} in float64 the adjoint's error falls with order "
        f"{found[key][0]:.2f} in the number of states ({found[key][1]}); modified Euler is of order 2."
    ]
