"""How figures are made. Colours stand for methods, shades and markers for variants of one method."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from reports import words

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
LONGEST = 100  # characters of a text in a figure
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


def lettering(text: str, longest: int = LONGEST) -> str:
    """A text from records as matplotlib shall show it: on one line, not as a formula, and not without end."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return (text if len(text) <= longest else f"{text[: longest - 1]}…").replace("$", r"\$")


def fits(values: Any) -> Any:
    """Which of these a logarithmic axis can show: what is positive, and whose margins are floats."""
    return (values > 1e-100) & (values < 1e100)


def fitting(*columns: Sequence[float]) -> list[np.ndarray]:
    """The points of which every coordinate fits a logarithmic axis."""
    table = np.array(columns, dtype=float)
    return list(table[:, fits(table).all(axis=0)])


def log_axis(axis: Axis, label: str, values: Sequence[float], text: Callable[[float], str] | None = None) -> None:
    """A logarithmic axis whose ticks are ``values`` themselves where these are counts, else round numbers."""
    axes = axis.axes
    (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
    axis.set_label_text(label)
    axis.set_minor_formatter(NullFormatter())
    values = [value for value in values if fits(value)]
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


def arranged(count: int) -> tuple[int, int]:
    """Rows and columns for so many panels: two beside each other."""
    columns = min(2, count)
    return math.ceil(count / columns), columns


def hide(grid: np.ndarray, used: int) -> None:
    """Leave the places empty that no panel takes."""
    for axes in list(grid.flat)[used:]:
        axes.set_visible(False)


def legend(canvas: Canvas, handles: Sequence[Line2D], columns: int = 2) -> None:
    """One legend for all panels, below them."""
    for handle in handles:
        handle.set_label(lettering(handle.get_label()))
    canvas.legend(handles=list(handles), loc="outside lower center", ncols=columns, fontsize=9.5, handlelength=2.6)


def few_ticks(low: float, high: float, binary: bool) -> list[float]:
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
        return ticks[:: math.ceil(len(ticks) / 4)]
    unit = 1024.0 ** math.floor(math.log(low, 1024)) if binary else 1.0  # a narrow range is nearly linear
    return [unit * tick for tick in MaxNLocator(3).tick_values(low / unit, high / unit) if low <= unit * tick <= high]


def file_name(*parts: str) -> str:
    """A file name made of these words."""
    return "-".join("".join(c if c.isalnum() else " " for c in " ".join(parts)).lower().split())[:60]
