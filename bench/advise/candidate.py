"""One method at one length, from all records about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ByteSize

from bench.advise.profile import SEEDS, update_key
from bench.harness.environment import BUSY_CORES
from bench.records import Cell, Record

FOUND = ("num_states", "forward", "backward", "checkpoint")  # by the method itself where it is given grad_rtol
ASKED = (
    "inner_steps",
    "inner_lr",
    "num_states",
    "forward",
    "backward",
    "checkpoint",
    "segment",
    "variant",
    "grad_rtol",
)


@dataclass(frozen=True)
class Candidate:
    """One method at one length, all its measurements together.

    Attributes:
        cell: one of its cells.
        target: what it estimates.
        metrics: of all its records that are ok, on the first tasks.
        failures: status and reason of those that are not, by probe; of the error, that it diverged on other tasks too.
        again: the metrics of its error on other tasks, one for each of ``SEEDS`` that is ok.
        busy: the cores that others used while it was timed, where that was too much; else 0.
    """

    cell: Cell
    target: str
    metrics: dict[str, float | int]
    failures: dict[str, tuple[str, str]]
    again: tuple[dict[str, float | int], ...] = ()
    busy: float = 0.0

    @property
    def steps(self) -> int:
        """K."""
        return self.cell.options["inner_steps"]

    @property
    def name(self) -> str:
        """The method and what distinguishes it."""
        options = self.cell.options
        parts = [f"{self.cell.method}{' ' + options['variant'] if 'variant' in options else ''}"]
        if "grad_rtol" in options:
            parts.append(f"grad_rtol={options['grad_rtol']:g}")
        elif self.cell.method == "amaml":
            parts += [f"{options['num_states']} states", options["backward"]]
        if options.get("checkpoint"):
            parts.append("checkpoints")
        if self.chunk_size:
            parts.append(f"{self.chunk_size} task at a time")
        return ", ".join(parts)

    @property
    def call(self) -> str:
        """What makes the method."""
        options = self.cell.options
        names = [name for name in ASKED if "grad_rtol" not in options or name not in FOUND]
        asked = [f"{name}={options[name]!r}" for name in names if options.get(name) is not None]
        quoted = f'"{self.cell.method}"'
        return f"am.create_method({', '.join([quoted, *asked])})"

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
    def first_error(self) -> float:
        """The distance to the nearer of the two gradients that a trajectory has, on the first tasks; NaN if not known.

        Of a surrogate, whose length means nothing, that of its direction: the sine of the angle. A method that
        differentiates the discrete steps themselves is exact whether or not that was measured.
        """
        return self._error(self.metrics)

    @property
    def error(self) -> float:
        """The worst such distance on all tasks that were looked at; NaN if not known, or if it failed on any."""
        if "error" in self.failures:
            return math.nan
        found = [self._error(metrics) for metrics in (self.metrics, *self.again)]
        return math.nan if any(map(math.isnan, found)) else max(found)

    @property
    def compared(self) -> bool:
        """Whether its gradient was held against a reference: what is exact by design may do without."""
        return any(name.startswith(("rel_error_", "cosine_")) for name in self.metrics)

    @property
    def rechecked(self) -> bool:
        """Whether its error was found on all of ``SEEDS`` too."""
        return len(self.again) == len(SEEDS)

    def _error(self, metrics: Mapping[str, float | int]) -> float:
        if self.target == "surrogate":
            cosines = [metrics[name] for name in ("cosine_flow", "cosine_unrolled") if name in metrics]
            return min((math.sqrt(max(0.0, 1 - c * c)) if c > 0 else 1.0 for c in cosines), default=math.nan)
        known = [metrics[name] for name in ("rel_error_flow", "rel_error_unrolled") if name in metrics]
        exact = self.target == "unrolled" and "error" not in self.failures
        return min(known, default=0.0 if exact else math.nan)

    @property
    def costs(self) -> str:
        """Its time, its memory and its errors, in words."""
        told = [f"{self.seconds:.3g} s", size(self.bytes)]
        for name, what in (("rel_error_flow", "flow's"), ("rel_error_unrolled", "unrolled")):
            if name in self.metrics:
                told.append(f"{self.metrics[name]:.1e} from the {what} gradient")
        return ", ".join(told)


def candidates(records: Sequence[Record]) -> list[Candidate]:
    """The records, one candidate a method and length, in the order of the lengths."""
    grouped: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        grouped.setdefault(update_key(record.cell), []).append(record)
    return sorted(map(_candidate, grouped.values()), key=lambda one: one.steps)


def _candidate(rows: Sequence[Record]) -> Candidate:
    first = [row for row in rows if row.cell.seed not in SEEDS]
    other = [row for row in rows if row.cell.seed in SEEDS]
    diverged = [row for row in other if row.status == "diverged"]  # another failure says nothing against it
    return Candidate(
        rows[0].cell,
        max(row.target for row in rows),
        {name: value for row in first if row.status == "ok" for name, value in row.metrics.items()},
        {row.cell.probe: (row.status, f"on other tasks, {row.reason}") for row in diverged}
        | {row.cell.probe: (row.status, row.reason) for row in first if row.status != "ok"},
        tuple(row.metrics for row in other if row.status == "ok"),
        max((_busy(row) for row in first if row.cell.probe == "time"), default=0.0),
    )


def _busy(record: Record) -> float:
    taken = record.environment.get("cores_taken") or 0.0
    return taken if taken >= BUSY_CORES else 0.0


def size(value: float) -> str:
    """Bytes in binary units."""
    return ByteSize(value).human_readable(separator=" ")
