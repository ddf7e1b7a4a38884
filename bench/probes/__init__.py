"""One measurement each: ``measure(problem, cell) -> Measurement``; long ones also take a directory to go on from."""

from __future__ import annotations

from bench.probes import allocator, counts, error, floor, memory, quality, regression, time

PROBES = {
    "allocator": allocator.measure,
    "counts": counts.measure,
    "error": error.measure,
    "floor": floor.measure,
    "memory": memory.measure,
    "quality": quality.measure,
    "regression": regression.measure,
    "time": time.measure,
}
