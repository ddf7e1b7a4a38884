"""The report's figures. Colours stand for methods, shades and markers for variants of one method."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from reports import precision, words
from reports.paper import Published
from reports.summary import Comparison, Scaling

# Okabe and Ito's palette, told apart by people with any common colour blindness
COLOURS = {
    "amaml": "#0072B2",
    "adjoint": "#0072B2",
    "maml": "#D55E00",
    "autodiff": "#D55E00",
    "remat-maml": "#E69F00",
    "fomaml": "#009E73",
    "reptile": "#CC79A7",
    "imaml": "#6B6B6B",
    "comln": "#56B4E9",
    "anil": "#000000",
    # other libraries' share figures with amaml, maml and remat-maml only
    "diffrax": "#CC3377",
    "jax-maml": "#009E73",
    "jax-remat-maml": "#7A4FA3",
    "torchopt-maml": "#6B6B6B",
    "higher-maml": "#B8A800",
    "loop-maml": "#000000",
}
SPARE = ("#56B4E9", "#000000", "#B8A800", "#7A4FA3")
ROUNDING = 10  # units of a precision; errors below so many are taken to be rounding, none better than another
ESTIMATED = {"flow": "the gradient of the flow", "unrolled": "the gradient of the discrete steps"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
STYLE = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("notebook"),
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#888888",
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "svg.hashsalt": "amaml-bench",  # else the ids inside an SVG are random
}


@dataclass(frozen=True)
class Figure:
    """A figure, drawn.

    Attributes:
        name: of its files.
        caption: what it shows.
        png: the file's bytes, at 150 dpi.
        svg: likewise.
        wide: whether the page gives it its whole width.
    """

    name: str
    caption: str
    png: bytes
    svg: bytes
    wide: bool = False


def palette(methods: Iterable[str]) -> dict[str, str]:
    """The colour of each method, the same in every figure of a report over these methods."""
    unknown = sorted(set(methods) - set(COLOURS))
    return COLOURS | {method: SPARE[i % len(SPARE)] for i, method in enumerate(unknown)}


def styles(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Label -> colour and marker, from pairs (method, label): a shade and a marker for each variant of a method."""
    by_method: dict[str, list[str]] = {}
    for method, label in sorted(set(pairs)):
        by_method.setdefault(method, []).append(label)
    colours, found = palette(by_method), {}
    for index, (method, labels) in enumerate(by_method.items()):
        for variant, label in enumerate(labels):
            shade = np.linspace(-0.45, 0.4, len(labels))[variant] if len(labels) > 1 else 0.0
            marker = MARKERS[(index + variant) % len(MARKERS)]
            found[label] = {"color": _blend(colours[method], float(shade)), "marker": marker}
    return found


def _blend(colour: str, shade: float) -> tuple[float, ...]:
    """Towards black for a negative shade, towards white for a positive one."""
    rgb, end = np.array(matplotlib.colors.to_rgb(colour)), float(shade > 0)
    return tuple((1 - abs(shade)) * rgb + abs(shade) * end)


@contextmanager
def canvas_of(rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Canvas, np.ndarray]]:
    """A figure that pyplot knows nothing of, under our style."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        FigureCanvasAgg(canvas)
        yield canvas, canvas.subplots(rows, columns, squeeze=False)


def drawn(canvas: Canvas, name: str, caption: str, wide: bool = False) -> Figure:
    """The figure, saved."""
    png, svg = io.BytesIO(), io.BytesIO()
    canvas.savefig(png, format="png", dpi=150, metadata={"Software": None})
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(name, caption, png.getvalue(), svg.getvalue(), wide)


def log_axis(axis: Axis, label: str, values: Sequence[float], text: Callable[[float], str] | None = None) -> None:
    """A logarithmic axis whose ticks are ``values`` themselves where these are counts, else round numbers."""
    axes = axis.axes
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    axis.set_label_text(label)
    axis.set_minor_formatter(NullFormatter())
    counts = sorted({int(value) for value in values if value == int(value)})
    if text is None and 1 < len(counts) <= 14:
        axis.set_ticks(counts, [str(value) for value in counts], fontsize=9.5)
        axis.set_minor_locator(NullLocator())
        return
    narrow = max(values, default=1) < 100 * min(values, default=1)
    bytes_ = LogLocator(base=4, numticks=9)  # binary units have round numbers at powers of two
    tens = LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=9)
    axis.set_major_locator(bytes_ if text is words.size else tens)
    if text is not None:
        axis.set_major_formatter(FuncFormatter(lambda value, _: text(value).replace(".00 ", " ").replace(".0 ", " ")))


def legend(canvas: Canvas, handles: Sequence[Line2D], columns: int = 2) -> None:
    """One legend for all panels, below them."""
    canvas.legend(handles=list(handles), loc="outside lower center", ncols=columns, fontsize=9.5, handlelength=2.6)


def scaling(found: Scaling, probe: str, name: str, look: dict[str, dict[str, Any]]) -> Figure | None:
    """A metric against the number of steps; None where there is nothing to draw a line through."""
    lines = [line for line in found.lines.itertuples() if len(line.steps) > 1]
    if not lines:
        return None
    quantity, text = ("peak memory", words.size) if probe == "memory" else ("time per update", words.seconds)
    with canvas_of(1, 1, (8, 4.6 + 0.13 * len(lines))) as (canvas, grid):
        axes = grid[0, 0]
        handles = []
        for line in sorted(lines, key=lambda line: -line.values[-1]):
            sns.lineplot(x=line.steps, y=line.values, ax=axes, markersize=6, lw=1.8, errorbar=None, **look[line.label])
            slope = "" if math.isnan(line.slope) else f"  slope {words.fixed(line.slope)}"
            handles.append(Line2D([], [], lw=1.8, markersize=6, label=f"{line.label}{slope}", **look[line.label]))
        log_axis(axes.xaxis, "inner steps", [steps for line in lines for steps in line.steps])
        log_axis(axes.yaxis, quantity, [value for line in lines for value in line.values], text)
        axes.set_title(found.title, fontsize=11)
        legend(canvas, handles)
        return drawn(canvas, name, f"{quantity.capitalize()} against the number of inner steps.")


def errors(points: pd.DataFrame, published: dict[str, Published], name: str, caption: str) -> Figure | None:
    """Error against states, a panel a horizon; hollow markers on dashed lines are published."""
    horizons = sorted(points.horizon.unique())
    if points.num_states.nunique() < 2:
        return None
    look = styles(zip(points.method, points.series, strict=True))
    dashes = dict(zip(sorted(points["where"].unique()), ("-", (0, (1, 1.2)), (0, (5, 1.5)), "-."), strict=False))
    columns = min(2, len(horizons))
    rows = math.ceil(len(horizons) / columns)
    with canvas_of(rows, columns, (8, 2.9 * rows + 1.4)) as (canvas, grid):
        handles: dict[str, Line2D] = {}
        for axes, horizon in zip(grid.flat, horizons, strict=False):
            for (series, where), line in points[points.horizon == horizon].groupby(["series", "where"]):
                form = look[series] | {"linestyle": dashes.get(where, "-"), "lw": 1.7, "markersize": 5}
                fine = line[line["mean"] > 0]
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
        for axes in list(grid.flat)[len(horizons) :]:
            axes.set_visible(False)
        legend(canvas, list(handles.values()))
        hollow = any("published" in line.get_label() for line in handles.values())
        return drawn(canvas, name, caption + " Hollow: published." * hollow)


def trade_off(found: Comparison, name: str, look: dict[str, dict[str, Any]]) -> Figure | None:
    """Error to the flow gradient against time and against memory; None below two methods with both."""
    panels = [
        ("outer_update_seconds", "time per update", words.seconds),
        ("peak_live_bytes", "peak memory", words.size),
    ]
    rows = found.rows[found.rows.rel_error_flow > 0]
    panels = [panel for panel in panels if rows[panel[0]].notna().sum() > 1]
    if not panels:
        return None
    shown = rows[rows[[panel[0] for panel in panels]].notna().any(axis=1)]
    with canvas_of(1, len(panels), (8, 4.2 + 0.13 * len(shown))) as (canvas, grid):
        for axes, (metric, label, text) in zip(grid.flat, panels, strict=True):
            for row in shown.to_dict("records"):
                form = look[row["label"]]
                axes.plot(row[metric], row["rel_error_flow"], ls="", ms=9, mec="white", mew=0.6, **form)
            log_axis(axes.xaxis, label, shown[metric].dropna(), text)
            log_axis(axes.yaxis, "relative error to the flow gradient", [1e-9, 1])
            axes.tick_params(axis="x", labelsize=9)
        for axes in list(grid.flat)[1:]:
            axes.set_ylabel("")
        legend(canvas, [Line2D([], [], ls="", ms=8, label=label, **look[label]) for label in shown.label.unique()])
        return drawn(canvas, name, f"Error against cost, {found.title}. Lower left is better.")


def work_precision(panels: Sequence[precision.Panel], target: str, name: str) -> Figure | None:
    """Error to one target against seconds and bytes, a column a horizon; None where no method with it was measured.

    A colour is a method, a marker one of its schemes; hollow is our eager engine. The step line is the Pareto front.
    """
    mine = [panel.cells[(panel.cells.target == target) & (panel.cells.error > 0)] for panel in panels]
    mine = [(panel, rows) for panel, rows in zip(panels, mine, strict=True) if len(rows)]
    if not mine:
        return None
    every = pd.concat([rows for _, rows in mine])
    look = _series_styles(every)
    rounding = ROUNDING * float(np.finfo(every.dtype.iloc[0]).eps)
    costs = [("seconds", "time per update", words.seconds), ("bytes", "peak memory", words.size)]
    costs = [cost for cost in costs if every[cost[0]].notna().any()]
    columns = len(mine)
    size = (max(8.0, 2.8 * columns), 3.0 * len(costs) + 0.25 * math.ceil(len(look) / 3) + 0.6)
    with canvas_of(len(costs), columns, size) as (canvas, grid):
        for number, (metric, label, text) in enumerate(costs):
            for column, (panel, rows) in enumerate(mine):
                axes = grid[number, column]
                shown = rows[rows[metric].notna()]
                log_axis(axes.yaxis, "", [1e-9, 1])
                log_axis(axes.xaxis, label, shown[metric], text)
                axes.xaxis.label.set_size(10)
                axes.tick_params(labelsize=9, labelleft=column == 0)
                axes.axhspan(0, rounding, color="#F2F2F2", zorder=0)
                axes.set_ylim(*_decades(every.error))
                if len(shown):
                    _draw_cells(axes, shown, metric, look, rounding)
                if number == 0:
                    axes.set_title(f"T = {panel.horizon:g} ({words.plural(panel.inner_steps, 'step')})", fontsize=11)
        grid[0, 0].text(0.03, 0.04, "better \u2199", transform=grid[0, 0].transAxes, fontsize=9, color="#666666")
        canvas.supylabel(f"relative error to {ESTIMATED[target]}", fontsize=11)
        handles = [Line2D([], [], label=series, **form) for series, form in look.items()]
        front = Line2D([], [], color="#BBBBBB", lw=4, label="Pareto front: the lowest error at a cost")
        within = Line2D([], [], color="#EEEEEE", lw=9, label=f"below {ROUNDING} units of rounding")
        within = [within] if every.error.min() < rounding else []
        legend(canvas, [*handles, front, *within], 3 if columns > 2 else 2)
        where = f"{panels[0].problem_label}, {panels[0].device}"
        caption = (
            f"Work against precision on {where}: error to {ESTIMATED[target]} against time and memory, for the methods "
            "that estimate it. Lower left is better. A line joins cells that differ only in tolerance or in the number "
            "of states; hollow markers are our eager engine."
        )
        return drawn(canvas, name, caption, wide=columns > 2)


def _series_styles(cells: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Series -> style: a colour a method, a shade and a marker a scheme, hollow and dashed for our eager engine."""
    schemes = styles(zip(cells.method, cells.scheme, strict=True))
    found = {}
    order = ["ours", "method", "scheme", "engine"]
    for row in cells.sort_values(order, ascending=[False, True, True, True]).itertuples():
        eager = row.engine == "eager"
        hollow = {"mfc": "white", "ls": (0, (4, 1.5))} if eager else {"ls": "-"}
        found[row.series] = schemes[row.scheme] | {"lw": 1.1, "markersize": 6} | hollow
    return found


def _draw_cells(axes: Any, rows: pd.DataFrame, metric: str, look: dict[str, dict[str, Any]], rounding: float) -> None:
    least, most = rows[metric].min(), rows[metric].max()
    best = precision.front(list(rows[metric]), list(rows.error), rounding)
    # from the top down to the cheapest, and on to the right of the most exact
    corners = [(best[0][0], 1e9), *best, (1e3 * most, best[-1][1])]
    axes.step(*zip(*corners, strict=True), where="post", color="#CCCCCC", lw=4, zorder=1, solid_joinstyle="round")
    margin = 1.12 * (most / least) ** 0.06
    axes.set_xlim(least / margin, most * margin)
    axes.xaxis.set_major_locator(FixedLocator(_few(least / margin, most * margin, binary=metric == "bytes")))
    for _, line in rows.sort_values("error").groupby(["series", rows.line.map(str)]):
        axes.plot(line[metric], line.error, **look[line.series.iloc[0]], zorder=2)


def _decades(errors: pd.Series) -> tuple[float, float]:
    """Limits around these errors: two decades at least, none above 10, where an error says nothing any more."""
    low, high = errors.min() / 3, min(errors.max() * 2, 10.0)
    return low, max(high, 100 * low)


def _few(low: float, high: float, binary: bool) -> list[float]:
    """Round numbers between these, at most four: more would run into each other under a small panel."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for base in (2, 4, 16, 64) if binary else ((1, 2, 5), (1, 3), (1,), (0.1,)):
        if isinstance(base, tuple):
            ticks = [10.0**ten * digit for ten in tens for digit in base]
        else:
            ticks = [float(base**power) for power in range(1, math.ceil(math.log(high, base)) + 1)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 4:
            break
    if len(ticks) > 1:
        return ticks
    unit = 1024.0 ** math.floor(math.log(low, 1024)) if binary else 1.0  # a narrow range is nearly linear
    return [unit * tick for tick in MaxNLocator(3).tick_values(low / unit, high / unit) if low <= unit * tick <= high]
