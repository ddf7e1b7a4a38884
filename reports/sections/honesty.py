"""Whether status and error estimate of a flow's gradient tell the truth (sweep honesty)."""

from __future__ import annotations

import json

import pandas as pd

from reports import words
from reports.evidence import Evidence
from reports.load import plain
from reports.section import Section
from reports.tables import make_table

COUNTS = (
    "draws",
    "near_draws",
    "alarmed_draws",
    "kinked_draws",
    "ok_draws",
    "missed_draws",
    "estimated_draws",
    "exceeded_draws",
)
COLUMNS = (
    "networks",
    "setting",
    "draws",
    "told ok",
    "ok, but > 10 % off",
    "above 3 × estimate",
    "false alarms",
    "kinks told",
)


def section(evidence: Evidence) -> Section:
    """Counts a setting and kind of network, and over all of them."""
    known = evidence.frame[evidence.frame.status == "ok"]
    rows, checked = known[known.probe == "honesty"], known[known.probe == "references"]
    shown = []
    if len(rows):
        rows = rows.assign(
            kind=[plain(json.loads(text).get("kind", "mlp")) for text in rows.problem_options],
            name=[_name(row) for row in rows.to_dict("records")],
        )
        sums = rows.groupby(["kind", "name"], sort=False)[list(COUNTS)].sum().reset_index()
        kinds = [_row(kind, "", group) for kind, group in sums.groupby("kind", sort=False)]
        for row in kinds:
            del row["setting"]
        shown.append(make_table("Over all settings", kinds, COLUMNS[:1]))
        each = [_row(row["kind"], row["name"], pd.DataFrame([row])) for row in sums.to_dict("records")]
        shown.append(make_table("Each setting", each, COLUMNS[:2], folded=True))
    return Section(
        "honesty",
        "Do status and error estimate tell the truth?",
        "bench-honesty",
        "Random small networks, fresh, meta-trained and near an optimum, over horizons from 0.5 to 20. The truth is "
        "SciPy's DOP853 there and back; for ReLU networks, whose flow has kinks, it is gradient descent in 4,000 "
        "steps. False alarms: of the gradients within 1 %, those that are not told to be ok. A gradient across kinks "
        "is told to be inaccurate on purpose, and counted apart; it is the almost-everywhere derivative.",
        shown,
        findings=_findings(rows) + _checked(checked),
    )


def _name(row: dict[str, object]) -> str:
    parts = [str(row.get("forward")), str(row.get("backward")), f"{row.get('num_states')} states"]
    options = json.loads(str(row["options"])) if "options" in row else {}
    if "grad_rtol" in options:
        return f"grad_rtol={options['grad_rtol']:g}"
    if options.get("num_states") == "accepted":
        parts[-1] = f"accepted, rtol={options['rtol']:g}"
    return ", ".join([*parts, *(["estimated"] if options.get("estimate_error") else [])])


def _row(kind: str, name: str, group: pd.DataFrame) -> dict[str, str]:
    total = group[list(COUNTS)].sum()
    values = (
        kind,
        name,
        f"{total.draws:.0f}",
        _share(total.ok_draws, total.draws),
        _share(total.missed_draws, total.ok_draws),
        _share(total.exceeded_draws, total.estimated_draws),
        _share(total.alarmed_draws, total.near_draws),
        _share(total.kinked_draws, total.draws),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%} ({part:.0f} of {whole:.0f})" if whole else "–"


def _findings(rows: pd.DataFrame) -> list[str]:
    told = []
    for name, kinked in (("smooth networks", False), ("ReLU networks", True)):
        mine = rows[(rows.kind == "relu") == kinked] if len(rows) else rows
        if len(mine):
            total = mine[list(COUNTS)].sum()
            told.append(
                f"On {total.draws:.0f} draws of {name} {_share(total.missed_draws, total.ok_draws)} of the gradients "
                f'told "ok" are more than 10 % off, and {_share(total.alarmed_draws, total.near_draws)} of those '
                "within 1 % are not told so."
            )
    return told


def _checked(rows: pd.DataFrame) -> list[str]:
    if not len(rows):
        return []
    return [
        f"The references of {rows.draws.sum():.0f} draws are at most {words.error(rows.reference_mismatch.max())} of "
        "their length off central differences of flows that were solved plainly, without an adjoint."
    ]
