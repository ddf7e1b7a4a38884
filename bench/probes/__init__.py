"""One measurement each: ``measure(problem, cell) -> Measurement``."""

from __future__ import annotations

from bench.probes import allocator, counts, error, floor, memory, time

PROBES = {
    "allocator": allocator.measure,
    "counts": counts.measure,
    "error": error.measure,
    "floor": floor.measure,
    "memory": memory.measure,
    "time": time.measure,
}
