"""Work against precision: what a gradient of a given error costs, ours beside other libraries'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from reports import words
from reports.analysis import precision
from reports.analysis.arithmetic import UNITS, ratio
from reports.evidence import Evidence
from reports.figures import Figure, canvas_of, drawn, few_ticks, file_name, fits, legend, log_axis, styles
from reports.section import Section
from reports.tables import Table, make_table

ROUNDING = 10  # units of a precision; errors below so many are taken to be rounding, none better than another
ESTIMATED = {"flow": "the gradient of the flow", "unrolled": "the gradient of the discrete steps"}
MAYBE = ("time / floor", "compilation, apart")  # columns that are shown only where something is in them
PEERS = {
    "diffrax": "diffrax (JAX): reverse mode through an adaptive solve of the flow, checkpointed",
    "jax-maml": "plain JAX: reverse mode through a jitted scan of all steps",
    "jax-remat-maml": "plain JAX: the same, each step checkpointed (jax.checkpoint)",
    "torchopt-maml": "TorchOpt: its differentiable SGD in eager torch, a task at a time",
    "higher-maml": "higher: its differentiable SGD in eager torch, a task at a time",
    "loop-maml": "a loop by hand in eager torch with create_graph=True, a task at a time",
    "loop-fomaml": "a loop by hand in eager torch, a task at a time",
    "loop-reptile": "a loop by hand in eager torch, a task at a time",
    "loop-imaml": "a loop by hand in eager torch, then conjugate gradients, a task at a time",
}


def section(evidence: Evidence) -> Section:
    """The fastest of each kind at each level of error, the front, and the same methods in other hands."""
    cells = evidence.cells
    shown, made = [], []
    for row in precision.panels(cells):
        first = precision.featured(row)
        others = [panel for panel in row if panel is not first]
        found = [fastest_table(panel, folded=panel is not first) for panel in [first, *others]]
        shown += [table for table in found if table.rows]
        name, mine = file_name("work precision", first.problem_label), precision.of_one_sweep(row)
        made += [figure(mine, target, f"{name}-{target}") for target in ESTIMATED]
    text = [
        "What a gradient of a given error costs. Each method is held to its own target, the gradient that it "
        "estimates, in float64: a method of the flow to that of the flow, an unrolled one to that of the discrete "
        "steps, of which an exact method misses only its rounding. The tables name for each level of error the fastest "
        "cell of each method and engine; the factor is its time over that of our fastest with the same target and "
        "level. Outside libraries run with an engine of their own. Memory is the allocator's peak."
    ]
    if shown and cells.compile_seconds.notna().any():
        text.append("Compilation comes once, before the first update, and is cached afterwards: no time includes it.")
    if shown and cells.floor_seconds.notna().any():
        text.append("The floor is the time of the update's matrix products and activations alone.")
    against = precision.pairs(cells)
    title, at = "Against the same method in other hands", against.horizon == precision.FEATURED
    others = pairs_table(f"{title}, at other horizons" if at.any() else title, against[~at], folded=bool(at.any()))
    shown += [pairs_table(title, against[at])] * bool(at.any()) + [others] * bool(others.rows)
    if shown and cells.method.isin(PEERS).any():
        shown.append(_peers_table("What the names stand for", cells.method))
    return Section(
        "work-precision",
        "Work-precision: gradient error against cost",
        "bench-peers",
        " ".join(text),
        shown,
        [figure for figure in made if figure],
        findings(cells),
    )


def fastest_table(panel: precision.Panel, folded: bool = False) -> Table:
    """The fastest cell of each method and engine at each level of error, and how far off those are that miss it.

    Levels at which the same cell has the same ratio share a row.
    """
    found: dict[tuple, list[float]] = {}
    shown: dict[tuple, dict[str, Any]] = {}
    for number in precision.LEVELS:
        best = precision.fastest(panel.cells, number)
        for row in best.to_dict("records"):
            key = (row["target"], row["series"], row["choices"], words.times(row["ratio"]))
            found.setdefault(key, []).append(number)
            shown[key] = row
        timed = panel.cells[panel.cells.seconds.notna() & panel.cells.error.notna()].sort_values("error")
        for row in timed.drop_duplicates(["target", "method", "engine"]).to_dict("records"):
            if row["error"] > number:
                key = (row["target"], row["series"], row["choices"], None)
                found.setdefault(key, []).append(number)
                shown[key] = row
    targets = list(precision.ERROR_TO)
    # by target and level; within them who reaches it comes first, the fastest at the top
    order = sorted(found, key=lambda k: (targets.index(k[0]), -found[k][0], k[3] is None, shown[k]["seconds"], k[1]))
    rows = [_fastest(shown[key], found[key], reached=key[3] is not None) for key in order]
    table = make_table(panel.title, rows, ("gradient, error at most", "method", "engine", "options"), folded)
    told = [name for name in table.columns if name not in MAYBE or (table.frame[name] != words.MISSING).any()]
    return replace(table, frame=table.frame[told])


def _fastest(row: dict[str, Any], levels: list[float], reached: bool) -> dict[str, str]:
    about = " to ".join(dict.fromkeys([words.level(levels[0]), words.level(levels[-1])]))
    return {
        "gradient, error at most": f"{row['target']}, {about}",
        "method": row["method"],
        "engine": row["engine"],
        "options": row["choices"] or words.MISSING,
        "time per update": words.seconds(row["seconds"]) if reached else "not reached",
        "to our fastest": words.times(row["ratio"]) if reached else words.MISSING,
        "time / floor": words.times(ratio(row["seconds"], row["floor_seconds"])) if reached else words.MISSING,
        "peak memory": words.size(row["bytes"]) if reached else words.MISSING,
        "error": f"{words.error(row['error'])}{'' if reached else ' at best'}",
        "compilation, apart": words.seconds(row["compile_seconds"]),
    }


def pairs_table(title: str, found: pd.DataFrame, folded: bool = False) -> Table:
    """Our methods against the same in other hands."""
    several = {name: found[name].nunique() > 1 for name in ("device", "dtype", "machine")}
    rows = []
    for row in found.to_dict("records"):
        known = row["their_seconds"] == row["their_seconds"]
        rows.append(
            {"problem": row["problem_label"], "T": f"{row['horizon']:g}", "steps": words.count(row["inner_steps"])}
            | {name: str(row[name]) for name, differs in several.items() if differs}
            | {
                "ours": f"{_with(row['method'], row['choices'])}, {row['engine']}",
                "time": words.seconds(row["seconds"]),
                "memory": words.size(row["bytes"]),
                "theirs": _with(row["peer"], row["their_choices"]),
                "their time": words.seconds(row["their_seconds"]) if known else row["failed"],
                "their memory": words.size(row["their_bytes"]),
                "theirs / ours, time": words.times(row["ratio"]),
                "theirs / ours, memory": words.times(ratio(row["their_bytes"], row["bytes"])),
            }
        )
    return make_table(title, rows, ("problem", "device", "dtype", "machine", "ours", "theirs"), folded)


def _with(method: str, choices: str) -> str:
    return f"{method} ({choices})" if choices else method


def _peers_table(title: str, methods: Iterable[str]) -> Table:
    """What the names of the outside methods among these stand for."""
    known = set(methods)
    rows = [{"name": name, "what it is": text} for name, text in PEERS.items() if name in known]
    return make_table(title, rows, ("name", "what it is"))


def figure(panels: Sequence[precision.Panel], target: str, name: str) -> Figure | None:
    """Error to one target against seconds and bytes, a column a horizon; None where no method with it was measured.

    A colour is a method, a marker one of its schemes; hollow is our eager engine. The step line is the Pareto front.
    """
    mine = [panel.cells[(panel.cells.target == target) & fits(panel.cells.error)] for panel in panels]
    mine = [(panel, rows) for panel, rows in zip(panels, mine, strict=True) if len(rows)]
    if not mine:
        return None
    every = pd.concat([rows for _, rows in mine])
    look = _series_styles(every)
    rounding = ROUNDING * UNITS.get(every.dtype.iloc[0], 0.0)
    costs = [("seconds", "time per update", words.seconds), ("bytes", "peak memory", words.size)]
    costs = [cost for cost in costs if fits(every[cost[0]]).any()]
    if not costs:
        return None
    columns = len(mine)
    size = (max(8.0, 2.8 * columns), 3.0 * len(costs) + 0.25 * math.ceil(len(look) / 3) + 0.6)
    with canvas_of(len(costs), columns, size) as (canvas, grid):
        for number, (metric, label, text) in enumerate(costs):
            for column, (panel, rows) in enumerate(mine):
                axes = grid[number, column]
                shown = rows[fits(rows[metric])]
                log_axis(axes.yaxis, "", [1e-9, 1])
                log_axis(axes.xaxis, label, shown[metric], text)
                axes.xaxis.label.set_size(10)
                axes.tick_params(labelsize=9, labelleft=column == 0)
                if rounding:
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
    axes.xaxis.set_major_locator(FixedLocator(few_ticks(least / margin, most * margin, binary=metric == "bytes")))
    for _, line in rows.sort_values("error").groupby(["series", rows.line.map(str)]):
        axes.plot(line[metric], line.error, **look[line.series.iloc[0]], zorder=2)


def _decades(errors: pd.Series) -> tuple[float, float]:
    """Limits around these errors: two decades at least, none above 10, where an error says nothing any more."""
    low, high = errors.min() / 3, min(errors.max() * 2, 10.0)
    return low, max(high, 100 * low)


def findings(cells: pd.DataFrame) -> list[str]:
    """What an error of 1e-3 costs ours and others, and what others need for the same method; a sentence each."""
    level, told = precision.LEVELS[1], []
    for row in precision.panels(cells):
        able = [panel for panel in row if len(_of_the_flow(panel, level))]
        if able:
            panel = precision.featured(able)
            first, best = _of_the_flow(panel, level).iloc[0], precision.fastest(panel.cells, level)
            theirs = best[~best.ours].sort_values("seconds")
            memory = f" and {words.size(first.bytes)}" if first.bytes == first.bytes else ""
            needs = ", ".join(
                f"{row.method} {words.seconds(row.seconds)} ({words.times(ratio(row.seconds, first.seconds))})"
                for row in theirs.itertuples()
            )
            told.append(
                f"On {panel.problem_label} at T = {panel.horizon:g}, {first.method} ({first.choices}, {first.engine}) "
                f"reaches an error of {words.level(level)} in {words.seconds(first.seconds)}{memory}"
                + (f"; of other libraries, each held to its own target, {needs}." if needs else ".")
            )
    for key, rows in precision.pairs(cells).dropna(subset="ratio").groupby(precision.PANEL):
        horizon = key[precision.PANEL.index("horizon")]
        if horizon == precision.FEATURED:
            each = ", ".join(f"{row.peer} {words.times(row.ratio)}" for row in rows.sort_values("ratio").itertuples())
            told.append(
                f"On {key[0]} at T = {horizon:g} the same methods in other hands take this many times as long: {each}."
            )
    return told


def _of_the_flow(panel: precision.Panel, level: float) -> pd.DataFrame:
    """Our fastest cells that reach this error to the gradient of the flow."""
    best = precision.fastest(panel.cells, level)
    return best[best.ours & (best.target == "flow")]
