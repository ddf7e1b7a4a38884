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
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from reports import words
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
}
SPARE = ("#56B4E9", "#000000", "#B8A800", "#7A4FA3")
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
    """

    name: str
    caption: str
    png: bytes
    svg: bytes


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
def _canvas(rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Canvas, np.ndarray]]:
    """A figure that pyplot knows nothing of, under our style."""
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        FigureCanvasAgg(canvas)
        yield canvas, canvas.subplots(rows, columns, squeeze=False)


def _drawn(canvas: Canvas, name: str, caption: str) -> Figure:
    png, svg = io.BytesIO(), io.BytesIO()
    canvas.savefig(png, format="png", dpi=150, metadata={"Software": None})
    canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(name, caption, png.getvalue(), svg.getvalue())


def _log_axis(axis: Axis, label: str, values: Sequence[float], text: Callable[[float], str] | None = None) -> None:
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


def _legend(canvas: Canvas, handles: Sequence[Line2D], columns: int = 2) -> None:
    canvas.legend(handles=list(handles), loc="outside lower center", ncols=columns, fontsize=9.5, handlelength=2.6)


def scaling(found: Scaling, probe: str, name: str, look: dict[str, dict[str, Any]]) -> Figure | None:
    """A metric against the number of steps; None where there is nothing to draw a line through."""
    lines = [line for line in found.lines.itertuples() if len(line.steps) > 1]
    if not lines:
        return None
    quantity, text = ("peak memory", words.size) if probe == "memory" else ("time per update", words.seconds)
    with _canvas(1, 1, (8, 4.6 + 0.13 * len(lines))) as (canvas, grid):
        axes = grid[0, 0]
        handles = []
        for line in sorted(lines, key=lambda line: -line.values[-1]):
            sns.lineplot(x=line.steps, y=line.values, ax=axes, markersize=6, lw=1.8, errorbar=None, **look[line.label])
            slope = "" if math.isnan(line.slope) else f"  slope {words.fixed(line.slope)}"
            handles.append(Line2D([], [], lw=1.8, markersize=6, label=f"{line.label}{slope}", **look[line.label]))
        _log_axis(axes.xaxis, "inner steps", [steps for line in lines for steps in line.steps])
        _log_axis(axes.yaxis, quantity, [value for line in lines for value in line.values], text)
        axes.set_title(found.title, fontsize=11)
        _legend(canvas, handles)
        return _drawn(canvas, name, f"{quantity.capitalize()} against the number of inner steps.")


def errors(points: pd.DataFrame, published: dict[str, Published], name: str, caption: str) -> Figure | None:
    """Error against states, a panel a horizon; hollow markers on dashed lines are published."""
    horizons = sorted(points.horizon.unique())
    if points.num_states.nunique() < 2:
        return None
    look = styles(zip(points.method, points.series, strict=True))
    dashes = dict(zip(sorted(points["where"].unique()), ("-", (0, (1, 1.2)), (0, (5, 1.5)), "-."), strict=False))
    columns = min(2, len(horizons))
    rows = math.ceil(len(horizons) / columns)
    with _canvas(rows, columns, (8, 2.9 * rows + 1.4)) as (canvas, grid):
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
            _log_axis(axes.xaxis, "states", points.num_states)
            _log_axis(axes.yaxis, "relative error", [1e-9, 1])
            axes.set_title(f"T = {horizon:g}", fontsize=11)
        for axes in list(grid.flat)[len(horizons) :]:
            axes.set_visible(False)
        _legend(canvas, list(handles.values()))
        hollow = any("published" in line.get_label() for line in handles.values())
        return _drawn(canvas, name, caption + " Hollow: published." * hollow)


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
    with _canvas(1, len(panels), (8, 4.2 + 0.13 * len(shown))) as (canvas, grid):
        for axes, (metric, label, text) in zip(grid.flat, panels, strict=True):
            for row in shown.to_dict("records"):
                form = look[row["label"]]
                axes.plot(row[metric], row["rel_error_flow"], ls="", ms=9, mec="white", mew=0.6, **form)
            _log_axis(axes.xaxis, label, shown[metric].dropna(), text)
            _log_axis(axes.yaxis, "relative error to the flow gradient", [1e-9, 1])
            axes.tick_params(axis="x", labelsize=9)
        for axes in list(grid.flat)[1:]:
            axes.set_ylabel("")
        _legend(canvas, [Line2D([], [], ls="", ms=8, label=label, **look[label]) for label in shown.label.unique()])
        return _drawn(canvas, name, f"Error against cost, {found.title}. Lower left is better.")
