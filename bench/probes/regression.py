"""Everything deterministic about one outer update, in one process: what the regression gate watches."""

from __future__ import annotations

from bench.probes import counts, error, memory
from bench.probes.base import Measurement
from bench.problems.base import BenchProblem
from bench.records import Cell


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """The metrics of the probes counts, memory and error."""
    result = Measurement()
    for probe in (counts, memory, error):
        found = probe.measure(problem, cell)
        result.metrics |= found.metrics
        result.samples |= found.samples
        if result.status == "ok":
            result.status, result.reason = found.status, found.reason
    return result
