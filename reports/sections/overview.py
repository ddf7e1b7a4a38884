"""All methods on each problem, at one trajectory length a table."""

from __future__ import annotations

from typing import Any

from matplotlib.lines import Line2D

from reports import words
from reports.analysis.costs import Comparison
from reports.evidence import Evidence
from reports.figures import Figure, canvas_of, drawn, file_name, fits, legend, log_axis
from reports.section import Section
from reports.sections.memory import agreement
from reports.tables import Table, make_table

PROBE_OF = {
    "peak_live_bytes": "memory",
    "outer_update_seconds": "time",
    "grad_evals": "memory",
    "hvp_evals": "memory",
    "rel_error_flow": "error",
    "rel_error_unrolled": "error",
    "cosine_unrolled": "error",
}


def section(evidence: Evidence) -> Section:
    """Costs and errors side by side."""
    compared = evidence.comparisons
    # the longest trajectory of each problem is what people come for; the others unfold
    longest = {found.problem_label: found for found in sorted(compared, key=lambda found: found.inner_steps)}
    shown = [_table(found, folded=found is not longest[found.problem_label]) for found in compared]
    made = []
    for problem in sorted(longest):
        mine = [found for found in compared if found.problem_label == problem]
        fullest = max(mine, key=lambda found: (_complete(found), found.inner_steps))
        made.append(_trade_off(fullest, file_name("overview", problem), evidence.look))
    return Section(
        "overview",
        "Overview",
        "bench",
        "One row a method at one trajectory length. Methods do not share a target: the target column says which "
        "gradient a method estimates, and its relative L2 error is given to the gradient of the flow and to that of "
        "the discrete steps, both in float64. Times are medians with quartiles in brackets. "
        f"{words.MISSING} stands for what was not measured; a status in a cell's place says why there is no number.",
        shown,
        [figure for figure in made if figure],
        agreement(evidence.readings) + _nearest(compared),  # what the column of memory is worth comes first
    )


def _complete(found: Comparison) -> int:
    return int((found.rows.rel_error_flow.notna() & found.rows.outer_update_seconds.notna()).sum())


def _table(comparison: Comparison, folded: bool = False) -> Table:
    """One row a method: what it costs and how far it is from each gradient."""
    rows = []
    several = comparison.rows.dtype.nunique() > 1
    for row in comparison.rows.to_dict("records"):
        cells = {"method": row["label"]} | ({"precision": row["dtype"]} if several else {})
        cells |= {
            "target": row["target"] or words.MISSING,
            "peak memory": _or_failure(row, "peak_live_bytes", words.size(row["peak_live_bytes"])),
            "time per update": _or_failure(
                row,
                "outer_update_seconds",
                words.seconds(row["outer_update_seconds"], row["seconds_low"], row["seconds_high"]),
            ),
            "gradients": _or_failure(row, "grad_evals", words.count(row["grad_evals"])),
            "HVPs": _or_failure(row, "hvp_evals", words.count(row["hvp_evals"])),
            "error to flow": _or_failure(row, "rel_error_flow", words.error(row["rel_error_flow"])),
            "error to unrolled": _or_failure(row, "rel_error_unrolled", words.error(row["rel_error_unrolled"])),
            "cosine to unrolled": _or_failure(row, "cosine_unrolled", words.fixed(row["cosine_unrolled"], 4)),
            "status": _status(row["by_probe"]),
        }
        rows.append(cells)
    return make_table(comparison.title, rows, ("method", "precision", "target", "status"), folded)


def _or_failure(row: dict[str, Any], metric: str, text: str) -> str:
    status = row["by_probe"].get(PROBE_OF[metric], ("ok",))[0]
    return text if status == "ok" else status


def _status(by_probe: dict[str, tuple[str, str, int]]) -> str:
    failed = [
        f"{probe}: {status}{f' ({reason})' if reason else ''}"
        for probe, (status, reason, _) in sorted(by_probe.items())
        if status != "ok"
    ]
    stuck = max(tasks for _, _, tasks in by_probe.values())
    return "; ".join(failed or ["ok"]) + (f"; not converged: {words.plural(stuck, 'task')}" if stuck else "")


def _trade_off(found: Comparison, name: str, look: dict[str, dict[str, Any]]) -> Figure | None:
    """Error to the flow gradient against time and against memory; None below two methods with both."""
    panels = [
        ("outer_update_seconds", "time per update", words.seconds),
        ("peak_live_bytes", "peak memory", words.size),
    ]
    rows = found.rows[fits(found.rows.rel_error_flow)]
    panels = [panel for panel in panels if fits(rows[panel[0]]).sum() > 1]
    if not panels:
        return None
    shown = rows[fits(rows[[panel[0] for panel in panels]]).any(axis=1)]
    with canvas_of(1, len(panels), (8, 4.2 + 0.13 * len(shown))) as (canvas, grid):
        for axes, (metric, label, text) in zip(grid.flat, panels, strict=True):
            for row in shown.to_dict("records"):
                if fits(row[metric]):
                    form = look[row["label"]]
                    axes.plot(row[metric], row["rel_error_flow"], ls="", ms=9, mec="white", mew=0.6, **form)
            log_axis(axes.xaxis, label, shown[metric].dropna(), text)
            log_axis(axes.yaxis, "relative error to the flow gradient", [1e-9, 1])
            axes.tick_params(axis="x", labelsize=9)
        for axes in list(grid.flat)[1:]:
            axes.set_ylabel("")
        legend(canvas, [Line2D([], [], ls="", ms=8, label=label, **look[label]) for label in shown.label.unique()])
        return drawn(canvas, name, f"Error against cost, {found.title}. Lower left is better.")


def _nearest(compared: list[Comparison]) -> list[str]:
    """The nearest and the farthest method from the flow gradient, where most methods were compared."""
    best, most = None, 1
    for comparison in compared:
        methods = comparison.rows[comparison.rows.rel_error_flow.notna()].method.nunique()
        if methods > most or (best and methods == most and comparison.inner_steps > best.inner_steps):
            best, most = comparison, methods
    if best is None:
        return []
    rows = best.rows.dropna(subset="rel_error_flow").sort_values("rel_error_flow")
    near, far = rows.iloc[0], rows.iloc[-1]
    return [
        f"{best.title}: the gradient of {near.label} is nearest to that of the flow "
        f"(relative error {words.error(near.rel_error_flow)}), that of {far.label} farthest "
        f"({words.error(far.rel_error_flow)})."
    ]
