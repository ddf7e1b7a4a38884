"""Seconds of one outer update."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from bench.probes.base import Measurement
from bench.problems.base import BenchProblem
from bench.records import Cell

MIN_SAMPLES, MAX_SAMPLES, MAX_SECONDS = 3, 50, 3.0
SLOW_SECONDS = 1.0  # an update this long is its own warm-up


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """``outer_update_seconds``: the median; every sample is one synchronised outer update, after two to warm up.

    At least ``MIN_SAMPLES`` samples, then as many as fit in ``MAX_SECONDS``. The set-up is not timed. The process's
    peak resident memory comes along: nothing that would disturb it runs here.
    """
    update = problem.update(cell, 0)
    timer = Timer("update()", globals={"update": update}, num_threads=torch.get_num_threads())
    began = time.perf_counter()
    out = update()
    if time.perf_counter() - began < SLOW_SECONDS:
        update()
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < MIN_SAMPLES or (len(samples) < MAX_SAMPLES and time.perf_counter() - began < MAX_SECONDS):
        samples.append(timer.timeit(1).median)
    result = Measurement(samples={"outer_update_seconds": samples})
    result.metrics["outer_update_seconds"] = statistics.median(samples)
    result.count(out.stats)
    result.judge(out.status)
    result.metrics |= _peak_resident()
    return result


def _peak_resident() -> dict[str, int]:
    """``peak_rss_bytes`` of this process so far (Linux). ``ru_maxrss`` would hold what the parent had at the fork."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {"peak_rss_bytes": int(fields["VmHWM"].split()[0]) * 1024}
