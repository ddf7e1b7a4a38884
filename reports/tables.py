"""The report's tables, every cell a string, so that Markdown and HTML show the same."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from bench.gate.calibration import QUIET, Calibration
from reports import precision, words
from reports.paper import Published
from reports.summary import AGREE, Comparison, Line, Scaling, orders, smallest_stable

PROBE_OF = {
    "peak_live_bytes": "memory",
    "outer_update_seconds": "time",
    "grad_evals": "memory",
    "hvp_evals": "memory",
    "rel_error_flow": "error",
    "rel_error_unrolled": "error",
    "cosine_unrolled": "error",
}


MAYBE = ("time / floor", "compilation, apart")  # columns that are shown only where something is in them


@dataclass(frozen=True)
class Table:
    """A table to show.

    Attributes:
        title: a heading, may be empty.
        frame: strings; the column names are the headings.
        left: columns of words, set flush left; the others hold numbers.
        folded: whether the page shows it only on demand.
    """

    title: str
    frame: pd.DataFrame
    left: frozenset[str] = field(default_factory=frozenset)
    folded: bool = False

    @property
    def columns(self) -> list[str]:
        """The headings."""
        return list(self.frame.columns)

    @property
    def rows(self) -> list[list[str]]:
        """The cells."""
        return self.frame.to_numpy().tolist()


def make_table(title: str, rows: Iterable[dict[str, str]], left: Iterable[str], folded: bool = False) -> Table:
    """A table of these rows; what a row lacks is shown as missing."""
    return Table(title, pd.DataFrame(list(rows)).fillna(words.MISSING), frozenset(left), folded)


def overview(comparison: Comparison, folded: bool = False) -> Table:
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


def errors(title: str, points: pd.DataFrame, published: dict[str, Published]) -> Table:
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


def convergence(title: str, points: pd.DataFrame) -> Table:
    """The observed order of each series at each horizon, and the states between which it was observed."""
    return _by_horizon(title, points, {key: f"{order:.2f} ({span})" for key, (order, span) in orders(points).items()})


def stability(title: str, points: pd.DataFrame) -> Table:
    """The smallest stable number of states of each series at each horizon."""
    return _by_horizon(title, points, {key: str(states) for key, states in smallest_stable(points).items()})


def _by_horizon(title: str, points: pd.DataFrame, texts: dict[Line, str]) -> Table:
    columns = _series_columns(points)
    rows = [
        {"T": f"{horizon:g}"}
        | {heading: texts.get((horizon, *key[1:]), words.MISSING) for key, heading in columns.items()}
        for horizon in sorted(points.horizon.unique())
    ]
    return make_table(title, rows, ())


def scaling(found: Scaling, probe: str) -> Table:
    """Slope and value at the reference number of steps, one row a method."""
    show = words.size if probe == "memory" else words.seconds
    rows = []
    for row in found.lines.sort_values(["value", "label"]).to_dict("records"):
        failed = row["failed"]
        known = row["value"] == row["value"]
        rows.append(
            {
                "method": row["label"],
                "slope": words.fixed(row["slope"]),
                "points": str(row["points"]),
                f"at {found.reference} steps": show(row["value"])
                if known
                else failed.get(found.reference, words.MISSING),
                **({"of it saved for backward": words.size(row["saved"])} if found.lines.saved.notna().any() else {}),
                "relative to maml": words.MISSING if row["ratio"] != row["ratio"] else words.share(row["ratio"]),
                "not ok": "; ".join(f"{status} at {steps}" for steps, status in failed.items()) or "none",
            }
        )
    return make_table(found.title, rows, ("method", "not ok"))


def disagreements(title: str, readings: pd.DataFrame) -> Table:
    """The updates whose two readings of memory are too far apart, the farthest first."""
    rows = readings[readings.off > AGREE].sort_values("off", ascending=False)
    return make_table(
        title,
        (
            {
                "problem": row.problem_label,
                "method": row.label,
                "steps": str(row.inner_steps),
                "where": row.where,
                "live tensors": words.size(row.live),
                "allocator": words.size(row.allocated),
                "apart": words.share(row.off),
            }
            for row in rows.itertuples()
        ),
        ("problem", "method", "where"),
    )


def fastest(panel: precision.Panel, folded: bool = False) -> Table:
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
        "time / floor": words.times(row["seconds"] / row["floor_seconds"]) if reached else words.MISSING,
        "peak memory": words.size(row["bytes"]) if reached else words.MISSING,
        "error": f"{words.error(row['error'])}{'' if reached else ' at best'}",
        "compilation, apart": words.seconds(row["compile_seconds"]),
    }


def pairs(title: str, found: pd.DataFrame, folded: bool = False) -> Table:
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
                "theirs / ours, memory": words.times(row["their_bytes"] / row["bytes"] if row["bytes"] else math.nan),
            }
        )
    return make_table(title, rows, ("problem", "device", "dtype", "machine", "ours", "theirs"), folded)


def _with(method: str, choices: str) -> str:
    return f"{method} ({choices})" if choices else method


def peers(title: str, methods: Iterable[str]) -> Table:
    """What the names of the outside methods among these stand for."""
    known = set(methods)
    rows = [{"name": name, "what it is": text} for name, text in precision.PEERS.items() if name in known]
    return make_table(title, rows, ("name", "what it is"))


def failures(frame: pd.DataFrame) -> Table:
    """Every record that is not ok, with its reason."""
    rows = frame[frame.status != "ok"].sort_values(
        ["problem_label", "probe", "method", "horizon", "inner_steps", "label", "where", "cell_id"]
    )
    return make_table(
        "",
        (
            {
                "problem": row.problem_label,
                "probe": row.probe,
                "method": row.label,
                "steps": str(row.inner_steps),
                "T": f"{row.horizon:g}",
                "where": row.where,
                "status": row.status,
                "reason": row.reason or "no reason given",
            }
            for row in rows.itertuples()
        ),
        ("problem", "probe", "method", "where", "status", "reason"),
    )


def environments(frame: pd.DataFrame) -> Table:
    """Where the numbers come from: what all records of a machine agree on."""
    rows = []
    for key, group in frame.groupby("timing_key"):
        first, *others = group.environment
        same = {
            name: value
            for name, value in first.items()
            if name not in ("timing_key", "counter_key") and all(other.get(name) == value for other in others)
        }
        packages = same.pop("packages", {})
        told = [f"{name} {version}" for name, version in packages.items()]
        told += [_fact(name, value) for name, value in same.items() if value not in ("", None, 0)]
        rows.append({"environment": key or "unknown", "records": str(len(group)), "details": ", ".join(told)})
    return make_table("", rows, ("environment", "details"))


def _fact(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes')} {words.size(value)}"
    return f"{name.replace('_', ' ')} {value}"


def gate(known: Calibration) -> list[Table]:
    """What the second tier of the gate finds in each case, and its recorded runs of identical code."""
    cases = [
        {
            "case": case.name,
            "std of a block": words.share(case.block_std),
            "passes on identical code": words.share(case.passed),
            **{f"found at {100 * (float(by) - 1):+.0f} %": words.share(rate) for by, rate in case.found.items()},
            "": "" if case.block_std <= QUIET else "insufficient",
        }
        for case in sorted(known.cases, key=lambda case: case.block_std)
    ]
    live = [
        {
            "began": run.began_at,
            "minutes": f"{run.minutes:g}",
            "revision": run.revision,
            "suspects of the first stage": ", ".join(run.suspects) or "none",
            "alarms of the control": ", ".join(run.alarmed) or "none",
            "verdict": run.verdict,
        }
        for run in known.live
    ]
    return [
        make_table("Cases", cases, ["case", ""]),
        make_table("Runs of identical code", live, set(live[0]) - {"minutes"} if live else (), folded=True),
    ]
