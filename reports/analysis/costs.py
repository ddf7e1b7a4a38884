"""What updates cost: probes of the same update joined, laws over steps, two readings of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports import words
from reports.analysis.arithmetic import log_slope, median, pooled
from reports.analysis.errors import cosmixture_study

METRIC_OF = {"memory": "peak_live_bytes", "time": "outer_update_seconds"}
AGREE = 0.1  # the share by which the two readings of memory may differ before the report speaks up
FIT_FROM = 20  # slopes are fitted on steps from here on: below, fixed costs hide the law
REFERENCE_STEPS = 500
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
    update = _update(frame)
    studied = frame.index.isin(cosmixture_study(frame).index)
    frame = frame[~studied | update.isin(update[frame.probe.isin(METRIC_OF)])]
    found = []
    by = ["problem_label", "setting", "device", "inner_steps", "inner_lr", "horizon"]
    for (problem, _, device, steps, lr, horizon), group in frame.groupby(by):
        rows = [_joined(rows) for _, rows in group.groupby(["method", "label", "options", "where"])]
        found.append(Comparison(problem, int(steps), float(lr), float(horizon), device, pd.DataFrame(rows)))
    return found


def _update(frame: pd.DataFrame, *more: str) -> pd.Series:
    """Which update was measured, whatever the probe: the values of these columns and of more."""
    asked = [frame[name] for name in ("setting", "method", "options", "where", *more)]
    return pd.Series(list(zip(*asked, strict=True)), index=frame.index, dtype=object)


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
    maml = median(table.value[table.label == "maml"])
    table["ratio"] = table["value"] / (maml or math.nan)
    return Scaling(title, reference, table)


def one_memory(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the allocator's reading in the tracker's place, for updates of which only that was taken."""
    update = _update(frame, "seed", "replicate", "counter_key")
    alone = (frame.probe == "allocator") & ~update.isin(update[frame.probe == "memory"])
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
    apart = (both.live - both.allocated).abs()
    off = (apart / both.allocated.abs()).where(apart > 0, 0.0)
    return both.assign(off=off)[[*about, "where", "live", "allocated", "off"]]
