"""What the sections on memory and on time share: a cost against the number of steps (E3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import seaborn as sns
from matplotlib.lines import Line2D

from reports import words
from reports.analysis.costs import FIT_FROM, Scaling
from reports.evidence import Evidence
from reports.figures import Figure, canvas_of, drawn, fitting, legend, lettering, log_axis
from reports.section import Section
from reports.tables import Table, make_table

RIVALS = ("amaml", "remat-maml")  # the adjoint, and the honest alternative to it


@dataclass(frozen=True)
class Cost:
    """What an update costs.

    Attributes:
        probe: that measures it.
        title: of the section, but for what it is set against.
        text: how it was measured.
        quantity: its name in a sentence.
        verb: what a method does with so much of it.
        show: a value for people.
    """

    probe: str
    title: str
    text: str
    quantity: str
    verb: str
    show: Callable[[float], str]


def law_section(evidence: Evidence, cost: Cost) -> Section:
    """How one cost grows with the number of steps."""
    laws = evidence.scalings[cost.probe]
    rivals = _rivals([law for found in evidence.scalings.values() for law in found])
    made = [law_figure(law, cost, evidence.look) for law in laws]
    told = [_finding(law, cost, rivals) for law in laws]
    return Section(
        cost.probe,
        f"{cost.title} against trajectory length (E3)",
        f"bench-{cost.probe}",
        f"{cost.text} The slope is that of a least-squares line through the logarithms at "
        f"{FIT_FROM} steps and more: 0 is constant, 1 is linear.",
        [law_table(law, cost) for law in laws],
        [figure for figure in made if figure],
        [finding for finding in told if finding],
    )


def law_table(found: Scaling, cost: Cost) -> Table:
    """Slope and value at the reference number of steps, one row a method."""
    rows = []
    for row in found.lines.sort_values(["value", "label"]).to_dict("records"):
        failed = row["failed"]
        known = row["value"] == row["value"]
        rows.append(
            {
                "method": row["label"],
                "slope": words.fixed(row["slope"]),
                "points": str(row["points"]),
                f"at {found.reference} steps": cost.show(row["value"])
                if known
                else failed.get(found.reference, words.MISSING),
                **({"of it saved for backward": words.size(row["saved"])} if found.lines.saved.notna().any() else {}),
                "relative to maml": words.share(row["ratio"]),
                "not ok": "; ".join(f"{status} at {steps}" for steps, status in failed.items()) or "none",
            }
        )
    return make_table(found.title, rows, ("method", "not ok"))


def law_figure(found: Scaling, cost: Cost, look: dict[str, dict[str, Any]]) -> Figure | None:
    """A metric against the number of steps; None where there is nothing to draw a line through."""
    lines = [(line, *fitting(line.steps, line.values)) for line in found.lines.itertuples()]
    lines = [(line, x, y) for line, x, y in lines if len(x) > 1]
    if not lines:
        return None
    with canvas_of(1, 1, (8, 4.6 + 0.13 * len(lines))) as (canvas, grid):
        axes = grid[0, 0]
        handles = []
        for line, x, y in sorted(lines, key=lambda drawn: -drawn[2][-1]):
            sns.lineplot(x=x, y=y, ax=axes, markersize=6, lw=1.8, errorbar=None, **look[line.label])
            slope = "" if math.isnan(line.slope) else f"  slope {words.fixed(line.slope)}"
            handles.append(Line2D([], [], lw=1.8, markersize=6, label=f"{line.label}{slope}", **look[line.label]))
        log_axis(axes.xaxis, "inner steps", [steps for _, x, _ in lines for steps in x])
        log_axis(axes.yaxis, cost.quantity, [value for _, _, y in lines for value in y], cost.show)
        axes.set_title(lettering(found.title), fontsize=11)
        legend(canvas, handles)
        return drawn(canvas, cost.probe, f"{cost.quantity.capitalize()} against the number of inner steps.")


def _rivals(laws: list[Scaling]) -> list[str]:
    """The leanest variant of each rival: the same ones speak for memory and for time, so that none is flattered."""
    found: dict[str, str] = {}
    for law in laws:
        for row in law.lines.dropna(subset="ratio").sort_values("value").itertuples():
            if row.method in RIVALS:
                found.setdefault(row.method, row.label)
    return sorted(found.values())


def _finding(law: Scaling, cost: Cost, rivals: list[str]) -> str:
    """The rivals against MAML at the reference, and how the cost grows; empty where neither is known."""
    lines, told = law.lines[law.lines.method.isin(["maml", *RIVALS])].set_index("label"), []
    beside = [lines.loc[label] for label in rivals if label in lines.index and lines.ratio[label] == lines.ratio[label]]
    if beside:
        shares = [f"{row.name} {cost.verb} {words.share(row.ratio)} of that ({cost.show(row.value)})" for row in beside]
        at = f"at {words.plural(law.reference, 'step')} maml's {cost.quantity} is {cost.show(lines.value['maml'])}"
        told.append(f"{at}; {', '.join(shares)}.")
    slopes = lines.slope[lines.slope.notna() & lines.index.isin(["maml", *rivals])]
    if len(slopes):
        powers = ", ".join(f"{words.fixed(slope)} for {label}" for label, slope in slopes.items())
        told.append(f"{cost.quantity.capitalize()} grows with the number of steps to the power {powers}.")
    return f"On {law.title}: {' '.join(told)}" if told else ""
