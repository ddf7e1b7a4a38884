"""What a profile's records say: one table, and which method to use at which trajectory length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ByteSize
from rich.table import Table

from bench.advise.profile import update_key
from bench.records import Cell, Record

BUSY = 0.75  # load a core, measured cell included, above which times are told with a doubt
WORTH = 0.01  # by what share a longer trajectory must lower the query loss to be worth its cost


@dataclass(frozen=True)
class Candidate:
    """One method at one length, all its measurements together.

    Attributes:
        cell: one of its cells.
        target: what it estimates.
        metrics: of all its records that are ok.
        failures: status and reason of those that are not, by probe.
        busy: the load a core while it was timed, where that was too much; else 0.
    """

    cell: Cell
    target: str
    metrics: dict[str, float | int]
    failures: dict[str, tuple[str, str]]
    busy: float = 0.0

    @property
    def steps(self) -> int:
        """K."""
        return self.cell.options["inner_steps"]

    @property
    def name(self) -> str:
        """The method and what distinguishes it."""
        options = self.cell.options
        chunk = f", {self.chunk_size} task at a time" if self.chunk_size else ""
        if self.cell.method == "amaml":
            return f"amaml, {options['num_states']} states, {options['backward']}{chunk}"
        return f"{self.cell.method}{' ' + options['variant'] if 'variant' in options else ''}{chunk}"

    @property
    def chunk_size(self) -> int | None:
        """Tasks that were worked on at once; None: all, or as many as the problem says."""
        return self.cell.problem_options.get("chunk_size")

    @property
    def bytes(self) -> float:
        """Peak memory of an update; NaN if not known."""
        return self.metrics.get("peak_allocated_bytes", math.nan)

    @property
    def seconds(self) -> float:
        """Time of an update; NaN if not known."""
        return self.metrics.get("outer_update_seconds", math.nan)

    @property
    def error(self) -> float:
        """The distance to the nearer of the two gradients that a trajectory has; NaN if not known.

        Of a surrogate, whose length means nothing, that of its direction: the sine of the angle. A method that
        differentiates the discrete steps themselves is exact whether or not that was measured.
        """
        if self.target == "surrogate":
            cosines = [self.metrics[name] for name in ("cosine_flow", "cosine_unrolled") if name in self.metrics]
            return min((math.sqrt(max(0.0, 1 - c * c)) if c > 0 else 1.0 for c in cosines), default=math.nan)
        known = [self.metrics[name] for name in ("rel_error_flow", "rel_error_unrolled") if name in self.metrics]
        exact = self.target == "unrolled" and "error" not in self.failures
        return min(known, default=0.0 if exact else math.nan)


def candidates(records: Sequence[Record]) -> list[Candidate]:
    """The records, one candidate a method and length, in the order of the lengths."""
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault(update_key(record.cell), []).append(record)
    found = [
        Candidate(
            rows[0].cell,
            max(row.target for row in rows),
            {name: value for row in rows if row.status == "ok" for name, value in row.metrics.items()},
            {row.cell.probe: (row.status, row.reason) for row in rows if row.status != "ok"},
            max((_busy(row) for row in rows if row.cell.probe == "time"), default=0.0),
        )
        for rows in grouped.values()
    ]
    return sorted(found, key=lambda one: one.steps)


@dataclass(frozen=True)
class Advice:
    """What the numbers say.

    Attributes:
        best: what to use; None where no method will do.
        told: a sentence a line.
    """

    best: Candidate | None
    told: list[str]

    def as_json(self, found: Sequence[Candidate]) -> dict[str, Any]:
        """It, and what was measured, in JSON's types."""
        best = self.best and {
            "method": self.best.cell.method,
            "options": self.best.cell.options,
            "chunk_size": self.best.chunk_size,
        }
        rows = [
            {
                "method": one.cell.method,
                "options": one.cell.options,
                "chunk_size": one.chunk_size,
                "target": one.target,
                "metrics": one.metrics,
                "failures": one.failures,
            }
            for one in found
        ]
        return {"recommendation": best, "told": [line.strip() for line in self.told], "measured": rows}


def recommend(found: Sequence[Candidate], memory_bytes: int, tolerance: float) -> Advice:
    """What to use, and why.

    Of the methods that fit in memory and whose gradient is within ``tolerance`` of the flow's or the unrolled one's
    the fastest is recommended, at the shortest length whose query loss after adaptation is within ``WORTH`` of the
    lowest. A method that was not measured whole is neither recommended nor held to be worse: the lengths at which all
    were come first.
    """
    whole = [one for one in found if not math.isnan(one.bytes + one.seconds + one.error)]
    faithful = [one for one in whole if one.bytes <= memory_bytes and one.error <= tolerance]
    if not faithful:
        return Advice(None, [_nothing(found, whole, memory_bytes, tolerance)])
    best_at: dict[int, Candidate] = {}
    for one in sorted(faithful, key=lambda one: one.seconds):
        best_at.setdefault(one.steps, one)
    partly = [one for one in found if one not in whole and not _out(one, memory_bytes)]
    unknown = {steps: [one.name for one in partly if one.steps == steps and not one.failures] for steps in best_at}
    loss = {one.steps: one.metrics["query_loss"] for one in faithful if "query_loss" in one.metrics}
    pool = [steps for steps in best_at if not unknown[steps]] or list(best_at)
    lowest = min((loss[steps] for steps in pool if steps in loss), default=math.nan)
    enough = [steps for steps in pool if steps in loss and loss[steps] <= lowest + WORTH * abs(lowest)]
    best = best_at[min(enough or pool)]
    told = [
        f"Use {best.name} at {best.steps} steps (T = {best.steps * best.cell.options['inner_lr']:g}): {_costs(best)}.",
        f"  am.create_method({_call(best.cell)})"
        + (f" with am.MetaProblem(…, chunk_size={best.chunk_size})" if best.chunk_size else ""),
        f"Of the methods that fit in {_size(memory_bytes)} and whose gradient is within {tolerance:.0%} of the "
        "flow's or the unrolled one's it is the fastest there.",
    ]
    if not any("rel_error_flow" in one.metrics for one in whole if one.steps == best.steps):
        told.append(
            "The flow's gradient could not be found there within the evaluations allowed (kinks as of ReLU or "
            "max-pooling, or a stiff trajectory): methods that estimate it are judged by the unrolled one alone."
        )
    if unknown[best.steps]:
        told.append(f"Not measured whole there, and so not compared: {'; '.join(unknown[best.steps])}.")
    failed = [one for one in partly if one.steps == best.steps and one.failures]
    if failed:
        status, reason = next(iter(failed[0].failures.values()))
        told.append(f"Failed there: {'; '.join(one.name for one in failed)} ({status}: {reason})")
    others = ", ".join(f"{value:.3g} at {steps}" for steps, value in sorted(loss.items()) if steps != best.steps)
    if others and best.steps in loss:
        told.append(
            f"The query loss after {best.steps} steps is {loss[best.steps]:.3g}, against {others}: at the model's own "
            "start values and on one batch of tasks, so look again once it has been meta-trained."
        )
    if best.busy:
        told.append(f"The machine was busy (load {best.busy:.1f} a core): times may be longer than they need be.")
    if best.target == "surrogate":
        told.append("It stands in for a gradient: its direction was judged, not its length, so tune the outer rate.")
    there = [one for one in whole if one.steps == best.steps and one is not best and one.bytes <= memory_bytes]
    lean = min((one for one in there if one in faithful), key=lambda one: one.bytes, default=None)
    if lean is not None and lean.bytes < best.bytes:
        told.append(f"With less memory: {lean.name} ({_costs(lean)}).")
    cheap = min((one for one in there if one not in faithful), key=lambda one: one.seconds, default=None)
    if cheap is not None and cheap.seconds < best.seconds:
        cosine = f"; cosine {cheap.metrics['cosine_unrolled']:.2f}" if "cosine_unrolled" in cheap.metrics else ""
        told.append(f"Cheaper, but farther off: {cheap.name} ({_costs(cheap)}{cosine}).")
    too_big = [one.name for one in found if one.steps == best.steps and _out(one, memory_bytes)]
    if too_big:
        told.append(f"Too big for {_size(memory_bytes)}: {'; '.join(too_big)}.")
    elsewhere = [
        f"{one.name} at {steps} steps ({_costs(one)})" for steps, one in sorted(best_at.items()) if one is not best
    ]
    if elsewhere:
        told.append(f"At the other lengths: {'; '.join(elsewhere)}.")
    return Advice(best, told)


def _busy(record: Record) -> float:
    load, cores = (record.environment.get(name) or 0 for name in ("load", "cores"))
    load = load[0] if isinstance(load, list | tuple) else load
    return load / cores if cores and load / cores > BUSY else 0.0


def _out(one: Candidate, memory_bytes: int) -> bool:
    """Whether it was measured to need more memory than the budget has."""
    return one.bytes > memory_bytes


def _nothing(found: Sequence[Candidate], whole: Sequence[Candidate], memory_bytes: int, tolerance: float) -> str:
    """Why there is no recommendation, and what to do."""
    near = min(whole, key=lambda one: one.error, default=None)
    if near is not None:
        return (
            f"No method fits in {_size(memory_bytes)} with a gradient within {tolerance:.0%}; the nearest is "
            f"{near.name} at {near.steps} steps ({_costs(near)}). Raise --memory, --minutes or --tolerance."
        )
    if found and all(_out(one, memory_bytes) for one in found):
        least = min(found, key=lambda one: one.bytes)
        return (
            f"No method fits in {_size(memory_bytes)}; the leanest is {least.name} at {least.steps} steps, which takes "
            f"{_size(least.bytes)}. Raise --memory."
        )
    reasons = Counter(reason for one in found for _, reason in one.failures.values())
    if reasons:
        return f"No method was measured to the end; mostly because: {reasons.most_common(1)[0][0]}"
    return "No method was measured to the end; allow more --minutes or shorter --steps."


def table(found: Sequence[Candidate]) -> Table:
    """What was measured, for the terminal."""
    shown = Table(title=None, box=None, pad_edge=False)
    shown.add_column("steps", justify="right")
    shown.add_column("method", overflow="fold")
    shown.add_column("target")
    for heading in ("memory", "seconds", "to flow", "to unrolled", "query loss"):
        shown.add_column(heading, justify="right")
    shown.add_column("not ok", overflow="fold")
    for one in found:
        numbers = [one.metrics.get(name) for name in ("rel_error_flow", "rel_error_unrolled", "query_loss")]
        failed = sorted({status for status, _ in one.failures.values()})
        stuck = ["not converged"] * ("not_converged_tasks" in one.metrics)
        shown.add_row(
            str(one.steps),
            one.name,
            one.target,
            _size(one.bytes) if one.bytes == one.bytes else "–",
            f"{one.seconds:.3g}" if one.seconds == one.seconds else "–",
            *(f"{number:.2g}" if number is not None else "–" for number in numbers),
            ", ".join(failed or stuck),
        )
    return shown


def _costs(one: Candidate) -> str:
    told = [f"{one.seconds:.3g} s", _size(one.bytes)]
    for name, what in (("rel_error_flow", "flow's"), ("rel_error_unrolled", "unrolled")):
        if name in one.metrics:
            told.append(f"{one.metrics[name]:.1e} from the {what} gradient")
    return ", ".join(told)


def _call(cell: Cell) -> str:
    shown = ("inner_steps", "inner_lr", "num_states", "forward", "backward", "segment", "variant")
    given = [f"{name}={cell.options[name]!r}" for name in shown if name in cell.options]
    return ", ".join([f'"{cell.method}"', *given])


def _size(value: float) -> str:
    return ByteSize(value).human_readable(separator=" ")
