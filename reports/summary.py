"""Numbers made from records: joined costs, errors against states, orders, slopes. Nothing here is formatted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from reports import words

METRIC_OF = {"memory": "peak_live_bytes", "time": "outer_update_seconds"}
AGREE = 0.1  # the share by which the two readings of memory may differ before the report speaks up
FIT_FROM = 20  # slopes are fitted on steps from here on: below, fixed costs hide the law
REFERENCE_STEPS = 500
LINE = ["horizon", "series", "where"]  # of a figure of errors: one scheme at one horizon in one precision
Line = tuple[float, str, str]
COMPARED = [
    "peak_live_bytes",
    "outer_update_seconds",
    "grad_evals",
    "hvp_evals",
    "rel_error_flow",
    "rel_error_unrolled",
    "cosine_unrolled",
]


@dataclass(frozen=True)
class Comparison:
    """All methods on one problem at one trajectory length.

    Attributes:
        problem_label: of the problem.
        inner_steps: K.
        inner_lr: of one step.
        horizon: T.
        device: "cpu" or "cuda".
        rows: one a method and precision: label, method, target, dtype, the metrics of ``COMPARED``, seconds_low and
            seconds_high (quartiles), and ``by_probe``: probe -> (status, reason, tasks that did not converge).
    """

    problem_label: str
    inner_steps: int
    inner_lr: float
    horizon: float
    device: str
    rows: pd.DataFrame

    @property
    def title(self) -> str:
        """What is compared."""
        steps = words.plural(self.inner_steps, "step")
        return f"{self.problem_label}: {steps} of {self.inner_lr:g}, T = {self.horizon:g}, {self.device}"


def comparisons(frame: pd.DataFrame) -> list[Comparison]:
    """Costs and errors of the same update joined over probes; the accuracy studies have tables of their own."""
    frame = frame[frame.problem != "closed_form"]
    costly = set(zip(*_update(frame[frame.probe.isin(METRIC_OF)]), strict=True))
    only_studied = [
        index in set(cosmixture_study(frame).index) and key not in costly
        for index, key in zip(frame.index, zip(*_update(frame), strict=True), strict=True)
    ]
    frame = frame[~np.array(only_studied, dtype=bool)]
    found = []
    by = ["problem_label", "setting", "device", "inner_steps", "inner_lr", "horizon"]
    for (problem, _, device, steps, lr, horizon), group in frame.groupby(by):
        rows = [_joined(rows) for _, rows in group.groupby(["method", "label", "options", "where"])]
        found.append(Comparison(problem, int(steps), float(lr), float(horizon), device, pd.DataFrame(rows)))
    return found


def _update(frame: pd.DataFrame) -> list[pd.Series]:
    """The columns that say which update was measured, whatever the probe."""
    return [frame[name] for name in ("setting", "method", "options", "where")]


def _joined(rows: pd.DataFrame) -> dict[str, object]:
    first, fine = rows.iloc[0], rows[rows.status == "ok"]
    seconds = pooled(fine, "outer_update_seconds")
    low, high = np.quantile(seconds, [0.25, 0.75]) if len(seconds) > 1 else (math.nan, math.nan)
    values = {name: fine[name].mean() for name in COMPARED} | {"outer_update_seconds": median(seconds)}
    worst = rows.sort_values(
        "status", key=lambda s: s != "ok", kind="stable"
    )  # of replicates the one that failed speaks
    by_probe = {
        probe: (status, reason, int(stuck) if stuck == stuck else 0)
        for probe, status, reason, stuck in zip(
            worst.probe, worst.status, worst.reason, worst.not_converged_tasks, strict=True
        )
    }
    about = {name: first[name] for name in ("label", "method", "dtype", "where")}
    about["target"] = max(rows.target)  # a row without an answer has none
    return about | values | {"seconds_low": low, "seconds_high": high, "by_probe": by_probe}


def pooled(rows: pd.DataFrame, metric: str) -> list[float]:
    """All samples of a metric over these rows; where a row kept none, its value."""
    values: list[float] = []
    for samples, value in zip(rows.samples, rows[metric], strict=True):
        values += samples.get(metric) or ([value] if value == value else [])
    return values


def median(values: list[float]) -> float:
    """Of these values; NaN where there are none."""
    return float(np.median(values)) if values else math.nan


def closed_form_study(frame: pd.DataFrame) -> pd.DataFrame:
    """The records of E1."""
    return frame[(frame.problem == "closed_form") & (frame.probe == "error") & frame.num_states.notna()]


def cosmixture_study(frame: pd.DataFrame) -> pd.DataFrame:
    """The records of E2: A-MAML's error on CosMixture, where a scheme was measured at three values of K or more."""
    rows = frame[
        (frame.problem == "cosmixture")
        & (frame.probe == "error")
        & (frame.method == "amaml")
        & frame.num_states.notna()
    ]
    return rows[rows.groupby(["setting", "where", "horizon", "series"]).num_states.transform("nunique") >= 3]


def error_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the error to the flow gradient, one row a (horizon, series, precision, states).

    Of cells that differ only otherwise (in seed, say) the one with the most samples counts.
    """
    points = rows.assign(
        values=[pooled(rows.iloc[[i]], "rel_error_flow") for i in range(len(rows))],
    )
    points["count"] = points["values"].map(len)
    points["mean"] = [float(np.mean(values)) if values else math.nan for values in points["values"]]
    points["std"] = [float(np.std(values, ddof=1)) if len(values) > 1 else math.nan for values in points["values"]]
    points.loc[points.status != "ok", ["mean", "std"]] = math.nan
    keys = ["setting", "horizon", "method", "series", "where", "num_states"]
    return points.sort_values([*keys, "count", "started_at"]).drop_duplicates(keys, keep="last")


def orders(points: pd.DataFrame) -> dict[Line, tuple[float, str]]:
    """The observed order of convergence between the last two numbers of states whose errors are above rounding.

    Above rounding means above 100 units of the precision: 1.2e-5 in float32, 2.2e-14 in float64. Lines without two
    such points are left out; the text says between which states.
    """
    found = {}
    for key, line in points.groupby(LINE):
        floor = 100 * np.finfo(line.dtype.iloc[0]).eps
        for (k1, e1), (k2, e2) in pairwise(zip(line.num_states, line["mean"], strict=True)):
            if e1 > floor and e2 > floor:
                found[key] = math.log(e1 / e2) / math.log(k2 / k1), f"{k1}–{k2}"
    return found


def smallest_stable(points: pd.DataFrame) -> dict[Line, int]:
    """The smallest number of states that was fine, as were all larger ones measured; lines without one are left out."""
    found = {}
    for key, line in points.groupby(LINE):
        for states, status in sorted(zip(line.num_states, line.status, strict=True), reverse=True):
            if status != "ok":
                break
            found[key] = int(states)
    return found


@dataclass(frozen=True)
class Scaling:
    """One metric against the number of steps, all methods on one problem in one environment.

    Attributes:
        title: the problem and where it was measured.
        reference: steps at which values are compared: 500, else the most that were measured.
        lines: one a label: method, label, ``steps`` and ``values`` (what was ok), slope and number of points of the
            fit, ``value`` at the reference and what autograd ``saved`` of it (memory only), ``ratio`` to maml there,
            ``failed``: steps -> status.
    """

    title: str
    reference: int
    lines: pd.DataFrame


def scalings(frame: pd.DataFrame, probe: str) -> list[Scaling]:
    """The laws of E3 for probe "memory" or "time"."""
    metric = METRIC_OF[probe]
    frame = frame[(frame.probe == probe) & (frame.problem != "closed_form")]
    return [_scaling(where, group, metric) for where, group in _alike(frame)]


def _alike(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Records whose values may be compared and plotted over steps."""
    for keys, group in frame.groupby(["problem_label", "where", "inner_lr", "key", "setting"]):
        yield f"{keys[0]} in steps of {keys[2]:g} ({keys[1]})", group


def _with_a_state_a_step(group: pd.DataFrame) -> pd.DataFrame:
    """The records with the line of as many states as steps, whose points each bear the label of their own number."""
    mine = group[(group.num_states == group.inner_steps).fillna(False) & group.label.str.contains(" states")]
    labels = [
        label.replace(f"{states} states", "a state a step")
        for label, states in zip(mine.label, mine.num_states, strict=True)
    ]
    line = mine.assign(label=labels)
    line = line[line.groupby("label").inner_steps.transform("nunique") > 1]
    single = group.groupby("label").inner_steps.transform("nunique") == 1
    return pd.concat([group[~(single & group.index.isin(line.index))], line])


def _scaling(title: str, group: pd.DataFrame, metric: str) -> Scaling:
    group = _with_a_state_a_step(group)
    fine = group[group.status == "ok"]
    measured = (fine if len(fine) else group).inner_steps
    reference = REFERENCE_STEPS if (measured == REFERENCE_STEPS).any() else int(measured.max())
    lines = []
    for (method, label), rows in group.groupby(["method", "label"]):
        by_steps = {
            int(steps): median(pooled(at, metric))
            for steps, at in rows[rows.status == "ok"].groupby("inner_steps")
            if pooled(at, metric)
        }
        failed = rows[rows.status != "ok"].sort_values("inner_steps")
        fitted = {steps: value for steps, value in by_steps.items() if steps >= FIT_FROM}
        lines.append(
            {
                "method": method,
                "label": label,
                "steps": list(by_steps),
                "values": list(by_steps.values()),
                "slope": log_slope(list(fitted), list(fitted.values())),
                "points": len(fitted),
                "value": by_steps.get(reference, math.nan),
                "saved": rows[(rows.status == "ok") & (rows.inner_steps == reference)].peak_saved_bytes.mean(),
                "failed": dict(zip(failed.inner_steps.astype(int), failed.status, strict=True)),
            }
        )
    table = pd.DataFrame(lines)
    maml = table[table.label == "maml"]["value"]
    table["ratio"] = table["value"] / (maml.iloc[0] if len(maml) else math.nan)
    return Scaling(title, reference, table)


def one_memory(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the allocator's reading in the tracker's place, for updates of which only that was taken."""
    update = [*_update(frame), frame.seed, frame.replicate, frame.counter_key]
    keys = pd.Series(list(zip(*update, strict=True)), index=frame.index, dtype=object)
    alone = (frame.probe == "allocator") & ~keys.isin(keys[frame.probe == "memory"])
    return frame.assign(
        probe=frame.probe.mask(alone, "memory"),
        peak_live_bytes=frame.peak_live_bytes.mask(alone, frame.peak_allocated_bytes),
        peak_allocated_bytes=frame.peak_allocated_bytes.mask(alone),
        peak_cuda_requested_bytes=frame.peak_cuda_requested_bytes.mask(alone),
    )


def readings(frame: pd.DataFrame) -> pd.DataFrame:
    """Both readings of the memory of each eager update that has both, in one environment and one benchmark.

    Columns: problem_label, label, where, inner_steps; ``live`` (the tracker's), ``allocated`` (the allocator's; on
    CUDA as requested, before it rounds to blocks) and ``off``, by how much the first differs from the second.
    """
    frame = frame[(frame.engine == "eager") & (frame.status == "ok") & frame.probe.isin(["memory", "allocator"])]
    told = frame.peak_cuda_requested_bytes.fillna(frame.peak_allocated_bytes)
    same = ["setting", "method", "options", "where", "seed", "counter_key"]
    about = ["problem_label", "label", "inner_steps"]
    found = frame.assign(live=frame.peak_live_bytes, allocated=told).groupby(same)
    both = found.agg(dict.fromkeys([*about, "live", "allocated"], "first")).reset_index()
    both = both.dropna(subset=["live", "allocated"])
    off = (both.live - both.allocated).abs() / both.allocated
    return both.assign(off=off)[[*about, "where", "live", "allocated", "off"]]


def log_slope(x: list[float], y: list[float]) -> float:
    """The least-squares slope of log y over log x; NaN below two points."""
    if len(x) < 2 or min(y) <= 0:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
