"""The gate's first tier: nothing that is deterministic may get worse than its committed baseline, unless accepted.

Every case of ``sweeps/regression.toml`` has a file in ``baselines/`` with the values that were accepted, for each
environment (``counter_key``) of its own, and what counts as worse. Besides, memory has to grow and errors have to
shrink as the methods' laws say.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amaml_core import InputError
from bench.gate.verdict import Check
from bench.records import METRICS, Cell, Record

SWEEP = "regression"
BASELINES = Path(__file__).parent / "baselines"
MOST_CASES = 12
ERROR_MARGIN = 1e-3  # of a float64 error, which repeats to some 1e-9 from one machine to another
ROUNDING = 1e-12  # errors below are rounding, not the method's
REPEATS = 1e-9  # relative, to which a float64 number is the same in two processes
NAMED = ("forward", "backward", "num_states", "variant")  # options that tell cases of a method apart


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(_Strict):
    """What counts as worse.

    Attributes:
        better: the direction.
        margin: relative, up to which a change in the other direction is let pass.
    """

    better: Literal["lower", "higher"]
    margin: float = Field(ge=0)


class Accepted(_Strict):
    """The values of one environment and why they are what they are."""

    reason: str
    values: dict[str, int | float]


class Baseline(_Strict):
    """One case's file.

    Attributes:
        cell: what is measured, as replicate 0.
        rules: by metric.
        accepted: by counter key.
    """

    cell: Cell
    rules: dict[str, Rule]
    accepted: dict[str, Accepted]


@dataclass(frozen=True)
class Law:
    """A log-log slope that must lie within bounds, over the cases that differ in nothing but ``axis``.

    Attributes:
        name: what breaks when it does not hold.
        method: whose cases.
        having: options that these cases have.
        metric: whose slope.
        axis: the option along which.
        least: the smallest slope allowed.
        most: the largest.
    """

    name: str
    method: str
    having: Mapping[str, Any]
    metric: str
    axis: str
    least: float
    most: float


RK4 = {"forward": "rk4", "backward": "rk4", "inner_steps": 50}
HEUN = {"forward": "heun", "backward": "modified_euler", "inner_steps": 50}
FEW = {"backward": "rk4", "num_states": 10}
LAWS = (
    # where MAML's own memory does not grow, no method could be shown to do better
    Law("memory of maml grows with the steps", "maml", {}, "peak_live_bytes", "inner_steps", 0.9, 1.1),
    Law("memory of amaml on 10 states does not", "amaml", FEW, "peak_live_bytes", "inner_steps", -0.05, 0.05),
    Law("order 4 of rk4", "amaml", RK4, "rel_error_flow", "num_states", -math.inf, -3.6),
    Law("order 2 of modified_euler", "amaml", HEUN, "rel_error_flow", "num_states", -math.inf, -1.8),
)


def case_name(cell: Cell) -> str:
    """A case's name, which is its file's too: "amaml-K50-rk4-rk4-10"."""
    options = [str(cell.options[key]) for key in NAMED if key in cell.options]
    engine = [] if cell.engine == "eager" else [cell.engine]
    asked = ["estimated"] if cell.options.get("estimate_error") else []
    if "grad_rtol" in cell.options:  # what else there is has its default
        options, asked = [], [f"grad_rtol{cell.options['grad_rtol']:g}"]
    return "-".join([cell.method, f"K{cell.options['inner_steps']}", *options, *asked, *engine])


def cases(cells: Iterable[Cell]) -> dict[str, Cell]:
    """The cases of the sweep by name.

    Raises:
        InputError: two different cells have one name, or there are too many.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        first = cell.model_copy(update={"replicate": 0})
        name = case_name(cell)
        if found.setdefault(name, first) != first:
            raise InputError(f"Sweep {SWEEP} has two different cases {name}; name what tells them apart, or drop one.")
    if len(found) > MOST_CASES:
        raise InputError(f"Sweep {SWEEP} has {len(found)} cases; the gate takes {MOST_CASES} at most.")
    return found


def read_baselines(directory: Path) -> dict[str, Baseline]:
    """All baselines by case.

    Raises:
        InputError: a file is not a baseline.
    """
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            found[path.stem] = Baseline.model_validate_json(path.read_bytes())
        except (ValidationError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise InputError(f"{path} is not a baseline ({first}); restore it from version control.") from None
    return found


def judge(records: Sequence[Record], baselines: Mapping[str, Baseline], laws: Sequence[Law] = LAWS) -> list[Check]:
    """The checks of every case, measured twice, and of the laws."""
    found = _by_case(records)
    checks = [check for name, pair in found.items() for check in _judge_case(name, pair, baselines.get(name))]
    checks += [
        Check(name, "case", "fail", text=f"It has a baseline and is not measured; measure it or delete {name}.json.")
        for name in baselines
        if name not in found
    ]
    return checks + [_judge_law(law, [pair[0] for pair in found.values()]) for law in laws]


def accept(records: Sequence[Record], baselines: Mapping[str, Baseline], reason: str) -> dict[str, Baseline]:
    """The baselines that these records make; other environments' values and hand-set margins are kept.

    Raises:
        InputError: a case failed, or differs between its two processes.
    """
    made = {}
    for name, pair in _by_case(records).items():
        first = pair[0]
        for record in pair:
            if record.status != "ok":
                raise InputError(f"{name} cannot be accepted: {record.reason}")
        values = _watched(first)
        for other in pair[1:]:
            if odd := [metric for metric in values if not _same(values[metric], other.metrics.get(metric))]:
                raise InputError(f"{name} cannot be accepted: {', '.join(odd)} differ between two processes.")
        before = baselines.get(name)
        rules = before.rules if before else {}
        others = before.accepted if before and before.cell == _case(first) else {}
        key = str(first.environment["counter_key"])
        mine = Accepted(reason=reason, values=values)
        if key in others and others[key].values == values:
            mine = others[key]  # it has its reason
        made[name] = Baseline(
            cell=_case(first),
            rules={metric: rules.get(metric) or _rule(metric) for metric in values},
            accepted=dict(sorted((others | {key: mine}).items())),
        )
    return made


def write_baselines(made: Mapping[str, Baseline], directory: Path) -> None:
    """One file a case; files of cases that are no more are deleted."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*.json"):
        if path.stem not in made:
            path.unlink()
    for name, baseline in made.items():
        part = directory / f"{name}.part"
        part.write_text(render(baseline))
        part.replace(directory / f"{name}.json")


def render(baseline: Baseline) -> str:
    """The file of a baseline."""
    return json.dumps(baseline.model_dump(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def diff(before: Mapping[str, Baseline], after: Mapping[str, Baseline]) -> str:
    """What changes in the files, in the unified form; empty where nothing does."""
    parts = []
    for name in sorted({*before, *after}):
        old, new = (render(side[name]).splitlines() if name in side else [] for side in (before, after))
        parts += difflib.unified_diff(old, new, f"a/{name}.json", f"b/{name}.json", lineterm="")
    return "\n".join(parts)


def _by_case(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.cell.replicate):
        found.setdefault(case_name(record.cell), []).append(record)
    return found


def _case(record: Record) -> Cell:
    return record.cell.model_copy(update={"replicate": 0})


def _watched(record: Record) -> dict[str, int | float]:
    """The metrics with a better side; of the errors that to the method's own target, to MAML's if it has none."""
    target = "unrolled" if record.target == "surrogate" else record.target
    return {
        name: value
        for name, value in sorted(record.metrics.items())
        if METRICS[name].better != "neither"
        and (not name.startswith(("rel_error_", "cosine_")) or name == f"rel_error_{target}")
    }


def _rule(metric: str) -> Rule:
    better = METRICS[metric].better
    assert better != "neither"
    return Rule(better=better, margin=ERROR_MARGIN if _is_real(metric) else 0)


def _is_real(metric: str) -> bool:
    """Whether a metric is a real number, and not a count."""
    return metric.startswith("rel_error_") or metric in ("query_loss", "error_estimate")


def _same(a: float, b: float | None) -> bool:
    if b is None or (isinstance(a, int) and isinstance(b, int)):
        return a == b
    return math.isclose(a, b, rel_tol=REPEATS, abs_tol=ROUNDING)


def _judge_case(name: str, pair: Sequence[Record], baseline: Baseline | None) -> list[Check]:
    if failed := [record for record in pair if record.status != "ok"]:
        crashed = failed[0].status in ("crashed", "timeout")
        return [Check(name, "status", "fail", text=failed[0].reason, crashed=crashed)]
    if len(pair) < 2:
        return [Check(name, "status", "fail", text="It was measured once only; run the gate again.", crashed=True)]
    if baseline is None:
        text = "It has no baseline; look at its numbers and run the gate with --accept REASON."
        return [Check(name, "case", "fail", text=text)]
    if baseline.cell != _case(pair[0]):
        text = "The case is another than the one of its baseline; run the gate with --accept REASON."
        return [Check(name, "case", "fail", text=text)]
    key = pair[0].environment["counter_key"]
    if key not in baseline.accepted:
        text = f"Nothing was accepted for {key}, only for {', '.join(baseline.accepted)}; use --accept REASON there."
        return [Check(name, "case", "no baseline", text=text)]
    values = baseline.accepted[key].values
    checks = [_judge_metric(name, metric, before, baseline.rules[metric], pair) for metric, before in values.items()]
    new = [metric for metric in _watched(pair[0]) if metric not in values]
    return checks + [Check(name, m, "no baseline", now=pair[0].metrics[m], text="Use --accept REASON.") for m in new]


def _judge_metric(name: str, metric: str, before: float, rule: Rule, pair: Sequence[Record]) -> Check:
    now, again = (record.metrics.get(metric) for record in pair[:2])
    if now is None:
        return Check(name, metric, "fail", before, text="It is no longer measured.")
    if not _same(now, again):
        text = f"Two processes disagree ({now} and {again}): it is not deterministic any more; find out why."
        return Check(name, metric, "fail", before, now, text)
    worse = (now - before) * (1 if rule.better == "lower" else -1)
    allowed = rule.margin * abs(before) + (ROUNDING if isinstance(now, float) else 0)
    if worse > allowed:
        return Check(name, metric, "fail", before, now, f"{METRICS[metric].text}: {rule.better} is better.")
    if worse < -allowed:
        return Check(name, metric, "better", before, now, "To hold the gain, run the gate with --accept REASON.")
    return Check(name, metric, "pass", before, now)


def _judge_law(law: Law, records: Sequence[Record]) -> Check:
    mine = [
        record
        for record in records
        if record.cell.method == law.method
        and law.metric in record.metrics
        and all(record.cell.options.get(key) == value for key, value in law.having.items())
    ]
    points = sorted((record.cell.options[law.axis], record.metrics[law.metric]) for record in mine)
    (low, first), (high, last) = (points[0], points[-1]) if points else ((0, 0.0), (0, 0.0))
    if low == high:
        return Check(law.name, "slope", "fail", text=f"No two cases differ in {law.axis}: the law cannot be checked.")
    if min(first, last) <= 0:
        return Check(law.name, "slope", "fail", text=f"{law.metric} is {first:g} and {last:g}: that has no slope.")
    slope = math.log(last / first) / math.log(high / low)
    bounds = f"{law.metric} against {law.axis}: at least {law.least:g}, at most {law.most:g}"
    return Check(law.name, "slope", "pass" if law.least <= slope <= law.most else "fail", None, slope, bounds)
