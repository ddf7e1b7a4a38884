"""Work against precision: what a gradient of a given error costs, ours beside other libraries'."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports import words
from reports.analysis.arithmetic import median, pooled, ratio
from reports.load import PRECISION, plain

LEVELS = (1e-2, 1e-3, 1e-4)
FEATURED = 5.0  # the horizon that is told and shown first: that of the sweep of peers
# the metric of a method's error to its own target; a surrogate estimates no gradient that there is an oracle for
ERROR_TO = {"flow": "rel_error_flow", "unrolled": "rel_error_unrolled", "stationary": "rel_error_stationary"}

COUNTERPART = {
    "jax-maml": "maml",
    "torchopt-maml": "maml",
    "higher-maml": "maml",
    "loop-maml": "maml",
    "jax-remat-maml": "remat-maml",
    "loop-fomaml": "fomaml",
    "loop-reptile": "reptile",
    "loop-imaml": "imaml",
}
SAME = ("", "paper-gd")  # variants of ours that the counterparts are; iMAML has others
FREE = ("segment", "form")  # options that change the cost only: each side has its best

BY_PLACE = ("forward", "backward", "solver", "variant")
TUNED = ("rtol", "atol", "num_states")  # what moves a cell along the line of its series
MACHINE = ["problem_label", "setting", "device", "dtype", "machine"]
PANEL = [*MACHINE, "horizon", "inner_steps", "inner_lr"]


@dataclass(frozen=True)
class Panel:
    """All cells of one problem at one trajectory length on one machine, from one sweep.

    Attributes:
        sweep: that one.
        problem_label: of the problem.
        inner_steps: K.
        inner_lr: of one step.
        horizon: T.
        device: "cpu" or "cuda".
        cells: rows of ``cells``.
    """

    sweep: str
    problem_label: str
    inner_steps: int
    inner_lr: float
    horizon: float
    device: str
    cells: pd.DataFrame

    @property
    def title(self) -> str:
        """What is compared."""
        steps = f"{words.plural(self.inner_steps, 'step')} of {self.inner_lr:g}"
        return f"{self.problem_label}: {steps}, T = {self.horizon:g}, {self.device}, sweep {self.sweep}"


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """One row an update of the sweeps that are kept apart, its probes joined.

    Columns: ``study``, those of ``PANEL``, method, engine, ``options`` as a dict, target, ``error`` to that target,
    ``seconds``, ``bytes``, compile_seconds, floor_seconds (the same for all engines), ``failed`` (the status of the
    time probe where that is not ok), ``ours``, and for showing:

    * ``scheme``: the method and the options that name it and not a point on its line; ``series``: that and the engine;
    * ``line``: cells to be joined: a series, and with numbers of states one rtol of it;
    * ``choices``: the options that tell this cell from others of its method.
    """
    frame = frame[frame.study.str.startswith(PRECISION)]
    alike = frame.groupby(["study", "setting", "method", "options", "dtype", "device", "timing_key"])
    frame = frame.assign(floor_seconds=alike.floor_seconds.transform("mean"))  # whatever the engine: it is their floor
    rows = [_joined(rows) for _, rows in frame.groupby(["study", "setting", "method", "options", "where"])]
    if not rows:
        return pd.DataFrame(columns=[*PANEL, "study", "method", "error", "seconds", "bytes"])
    made = pd.DataFrame(rows)
    told = made.groupby(["study", "setting", "method"]).options.transform(
        lambda options: [_differing(options)] * len(options)
    )
    named = [_scheme(options, more) for options, more in zip(made.options, told, strict=True)]
    made["scheme"] = [f"{m} ({name})" if name else m for m, name in zip(made.method, named, strict=True)]
    made["series"] = [
        f"{method} ({', '.join(filter(None, [name, engine if ours else '']))})".replace(" ()", "")
        for method, name, engine, ours in zip(made.method, named, made.engine, made.ours, strict=True)
    ]
    grids = [isinstance(options.get("num_states"), int) for options in made.options]
    rtol = [options.get("rtol") for options in made.options]
    made["line"] = [(s, r if grid else None) for s, r, grid in zip(made.series, rtol, grids, strict=True)]
    moved = made.groupby(["study", "setting", "scheme"]).options.transform(
        lambda options: [_tolerances(options)] * len(options)
    )
    made["choices"] = [_choices(*row) for row in zip(named, made.options, moved, strict=True)]
    return made


def _joined(rows: pd.DataFrame) -> dict[str, Any]:
    first, fine, timed = rows.iloc[0], rows[rows.status == "ok"], rows[rows.probe == "time"]
    target = max(rows.target)  # a row without an answer has none
    failed = timed.status[timed.status != "ok"]
    allocated, live = fine.peak_allocated_bytes.mean(), fine.peak_live_bytes.mean()
    about = ("study", "problem_label", "setting", "device", "dtype", "horizon", "inner_steps", "inner_lr", "method")
    return {name: first[name] for name in (*about, "engine")} | {
        "machine": (timed if len(timed) else rows).timing_key.iloc[0],
        "ours": first.engine != "own",
        "options": json.loads(first.options),
        "target": target,
        "error": fine[ERROR_TO[target]].mean() if target in ERROR_TO else math.nan,
        "seconds": median(pooled(fine, "outer_update_seconds")),
        "bytes": live if math.isnan(allocated) else allocated,
        "compile_seconds": fine.compile_seconds.max(),  # a later process finds the cache on disk
        "floor_seconds": fine.floor_seconds.mean(),
        "failed": failed.iloc[0] if len(failed) else "",
    }


def _differing(options: Sequence[dict[str, Any]]) -> list[str]:
    """The options in which these differ, but for those that have a place of their own."""
    names = sorted(set().union(*options) - {*BY_PLACE, *TUNED, "inner_steps", "inner_lr"})
    return [name for name in names if len({plain(one.get(name)) for one in options}) > 1]


def _scheme(options: dict[str, Any], differing: list[str]) -> str:
    forward, backward = options.get("forward"), options.get("backward")
    solvers = f"{forward} both ways" if forward == backward else f"{forward} forward, {backward} back"
    if backward == "discrete":
        solvers = f"{forward}, discrete adjoint"
    placed = [solvers if forward and backward else forward, options.get("solver"), options.get("variant")]
    more = [f"{name}={plain(options[name])}" for name in differing if options.get(name) is not None]
    return ", ".join([*(plain(name) for name in placed if name), *more])


def _tolerances(options: Sequence[dict[str, Any]]) -> list[str]:
    """Of rtol and atol what must be told: atol only where it does not follow from rtol."""
    pairs = {(plain(one.get("rtol")), plain(one.get("atol"))) for one in options}
    tightened = {rtol for rtol, _ in pairs}
    return ["rtol"] * (len(tightened) > 1) + ["atol"] * (len(pairs) > len(tightened))


def _choices(scheme: str, options: dict[str, Any], tolerances: list[str]) -> str:
    states = options.get("num_states")
    shown = f"{states} states" if states is not None and options.get("backward") != "backsolve" else ""
    told = [f"{name}={_level(options[name])}" for name in tolerances if name in options]
    return ", ".join(filter(None, [scheme, shown, *told]))


def _level(value: Any) -> str:
    return words.level(value) if isinstance(value, float) else plain(value)


def panels(made: pd.DataFrame) -> list[list[Panel]]:
    """The panels of each problem on each machine, by horizon, then sweep.

    Only panels with a cell whose error and cost are both known.
    """
    found: dict[tuple, list[Panel]] = {}
    for (label, *rest, horizon, steps, lr, sweep), group in made.groupby([*PANEL, "study"]):
        if (group.error.notna() & (group.seconds.notna() | group.bytes.notna())).any():
            panel = Panel(sweep, label, int(steps), float(lr), float(horizon), rest[1], group)
            found.setdefault((label, *rest), []).append(panel)
    return list(found.values())


def featured(row: Sequence[Panel]) -> Panel:
    """The panel at the horizon ``FEATURED``, else the one of the longest; of two sweeps that of ``peers``."""
    return min(row, key=lambda panel: (panel.horizon != FEATURED, -panel.horizon, panel.sweep))


def of_one_sweep(row: Sequence[Panel]) -> list[Panel]:
    """The panels of ``work_precision``, which has the more options, else those of ``peers``."""
    sweep = max(panel.sweep for panel in row)  # in the alphabet it comes later
    return [panel for panel in row if panel.sweep == sweep]


def fastest(made: pd.DataFrame, level: float) -> pd.DataFrame:
    """The fastest cell of each target, method and engine whose error to its own target is at most ``level``.

    Sorted by seconds within a target, with ``ratio``: to the fastest of ours that has the same target.
    """
    good = made[made.seconds.notna() & (made.error <= level)].sort_values("seconds", kind="stable")
    best = good.drop_duplicates(["target", "method", "engine"])
    ours = best[best.ours.astype(bool)].groupby("target").seconds.min()
    best = best.assign(ratio=best.seconds / best.target.map(ours).astype(float))
    return best.sort_values(["target", "seconds"], kind="stable")


def front(costs: Sequence[float], errors: Sequence[float], floor: float = 0.0) -> list[tuple[float, float]]:
    """The points that no other beats in both: by rising cost, each with a lower error than all that are cheaper.

    Errors below ``floor`` count as equal to it.
    """
    best, kept = math.inf, []
    for cost, error in sorted(zip(costs, (max(error, floor) for error in errors), strict=True)):
        if error < best:
            best = error
            kept.append((cost, error))
    return kept


def pairs(made: pd.DataFrame) -> pd.DataFrame:
    """Each method of ours beside the same method in other hands: same problem, same options, same sweep.

    Columns: those of ``PANEL``, method, engine, choices, seconds and bytes (ours, with the fastest engine), peer,
    ``their_choices``, ``their_seconds``, ``their_bytes``, ``failed`` (why they have no seconds), ``ratio``: theirs
    over ours. Of two sweeps with the same pair ``peers`` speaks.
    """
    rows = []
    for (_, *key), group in made.groupby(["study", *PANEL]):
        for peer, method in COUNTERPART.items():
            theirs = group[group.method == peer].sort_values("seconds", kind="stable")
            if theirs.empty:
                continue
            other = theirs.iloc[0]
            ours = group[(group.method == method) & group.seconds.notna()].sort_values("seconds", kind="stable")
            ours = ours[[_agree(options, other.options) for options in ours.options]]
            if len(ours):
                mine = ours.iloc[0]
                rows.append(
                    dict(zip(PANEL, key, strict=True))
                    | {name: mine[name] for name in ("method", "engine", "choices", "seconds", "bytes")}
                    | {"peer": peer, "their_choices": other.choices, "failed": other.failed or "not measured"}
                    | {"their_seconds": other.seconds, "their_bytes": other.bytes}
                    | {"ratio": ratio(other.seconds, mine.seconds)}
                )
    found = pd.DataFrame(rows, columns=None if rows else [*PANEL, "method", "peer", "ratio"])
    found = found.drop_duplicates([*PANEL, "peer"])  # the sweeps come in the order of the alphabet
    order = {method: place for place, method in enumerate(dict.fromkeys(COUNTERPART.values()))}
    return found.sort_values([*PANEL[:6], "method", "ratio"], key=lambda c: c.map(order) if c.name == "method" else c)


def _agree(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    shared = (ours.keys() & theirs.keys()) - {*FREE}
    return ours.get("variant", "") in SAME and all(ours[name] == theirs[name] for name in shared)
