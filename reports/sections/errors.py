"""What the sections on accuracy share: errors against the number of states, ours beside the published."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.lines import Line2D

from reports import words
from reports.analysis.errors import Line
from reports.figures import Figure, arranged, canvas_of, drawn, fits, hide, legend, log_axis, palette, styles
from reports.paper import Published
from reports.tables import Table, make_table


def errors_table(title: str, points: pd.DataFrame, published: dict[str, Published]) -> Table:
    """Error against states for each horizon, ours beside what was published for the same method."""
    columns = _series_columns(points)
    rows = []
    for (horizon, states), at in points.groupby(["horizon", "num_states"]):
        measured = {(r.series, r.where): r for r in at.itertuples()}
        cells = {"T": f"{horizon:g}", "states": f"{states}"}
        told = set()
        for (method, series, where), heading in columns.items():
            paper = published.get(method, {})
            if paper and method not in told:  # the published column comes just before our first of that method
                told.add(method)
                cells[f"{method}, published"] = words.error(*paper.get((horizon, states), (float("nan"), None)))
            point = measured.get((series, where))
            cells[heading] = words.MISSING if point is None else _point(point)
        rows.append(cells)
    return make_table(title, rows, ())


def _point(point: Any) -> str:
    return words.error(point.mean, point.std) if point.status == "ok" else point.status


def _series_columns(points: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """(method, series, where) -> heading; the device is named only where there are several."""
    short = points.device.nunique() == 1
    where = points["where"].str.replace(r", \w+", "", n=1, regex=True) if short else points["where"]
    points = points.assign(shown=where)
    seen = points.drop_duplicates(["method", "series", "where"]).sort_values(["method", "series", "where"])
    return {(row.method, row.series, row.where): f"{row.series}, {row.shown}" for row in seen.itertuples()}


def by_horizon(title: str, points: pd.DataFrame, texts: dict[Line, str]) -> Table:
    """A row a horizon, a column a series: what is told of that line."""
    columns = _series_columns(points)
    rows = [
        {"T": f"{horizon:g}"}
        | {heading: texts.get((horizon, *key[1:]), words.MISSING) for key, heading in columns.items()}
        for horizon in sorted(points.horizon.unique())
    ]
    return make_table(title, rows, ())


def errors_figure(points: pd.DataFrame, published: dict[str, Published], name: str, caption: str) -> Figure | None:
    """Error against states, a panel a horizon; hollow markers on dashed lines are published."""
    points = points[points.num_states > 0]
    horizons = sorted(points.horizon.unique())
    if points.num_states.nunique() < 2:
        return None
    look = styles(zip(points.method, points.series, strict=True))
    dashes = dict(zip(sorted(points["where"].unique()), ("-", (0, (1, 1.2)), (0, (5, 1.5)), "-."), strict=False))
    rows, columns = arranged(len(horizons))
    with canvas_of(rows, columns, (8, 2.9 * rows + 1.4)) as (canvas, grid):
        handles: dict[str, Line2D] = {}
        for axes, horizon in zip(grid.flat, horizons, strict=False):
            for (series, where), line in points[points.horizon == horizon].groupby(["series", "where"]):
                form = look[series] | {"linestyle": dashes.get(where, "-"), "lw": 1.7, "markersize": 5}
                fine = line[fits(line["mean"])]
                axes.plot(fine.num_states.astype(int), fine["mean"], **form)
                handles.setdefault(f"{series}, {where}", Line2D([], [], label=f"{series}, {where}", **form))
            for method, paper in published.items():
                told = sorted((states, mean) for (at, states), (mean, _) in paper.items() if at == horizon)
                if told and (points.method == method).any():
                    form = {"color": palette([method])[method], "marker": "o", "mfc": "white", "ls": "--", "lw": 1}
                    axes.plot(*zip(*told, strict=True), **form)
                    handles.setdefault(method, Line2D([], [], label=f"{method}, published", **form))
            log_axis(axes.xaxis, "states", points.num_states)
            log_axis(axes.yaxis, "relative error", [1e-9, 1])
            axes.set_title(f"T = {horizon:g}", fontsize=11)
        hide(grid, len(horizons))
        legend(canvas, list(handles.values()))
        hollow = any("published" in line.get_label() for line in handles.values())
        return drawn(canvas, name, caption + " Hollow: published." * hollow)
