"""Seconds of one outer update."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from amaml_core.engine import inductor
from bench.probes.base import Measurement
from bench.problems.base import BenchProblem
from bench.records import Cell

MIN_SECONDS, MAX_SECONDS = 1.0, 3.0


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """``outer_update_seconds``: the median; every sample is a synchronised outer update, or a mean of a few short ones.

    After two updates to warm up, samples are taken for ``MIN_SECONDS`` and until their quartiles are within 10 % of
    each other, ``MAX_SECONDS`` at most. The set-up is not timed. The process's peak resident memory comes along,
    since nothing that would disturb it runs here; but not on CUDA, where other cells may have gone before. There
    ``compile_seconds`` is what the first update took longer.
    """
    compiling = -inductor.seconds
    update = problem.update(cell, 0)
    timer = Timer("update()", globals={"update": update}, num_threads=torch.get_num_threads())
    began = time.perf_counter()
    out = update()
    first = time.perf_counter() - began
    compiling += inductor.seconds  # a cache on disk makes it short the next time
    samples = timer.adaptive_autorange(min_run_time=MIN_SECONDS, max_run_time=MAX_SECONDS).times
    result = Measurement(samples={"outer_update_seconds": samples})
    result.metrics["outer_update_seconds"] = statistics.median(samples)
    if cell.device == "cuda" and cell.engine in ("graphed", "compiled"):  # captures, and kernels of our own, come to it
        compiling = max(first - result.metrics["outer_update_seconds"], 0.0)
    if cell.engine in ("graphed", "compiled"):
        result.metrics["compile_seconds"] = compiling
    result.count(out.stats)
    result.judge(out.status)
    if cell.device != "cuda":
        result.metrics |= _peak_resident()
    return result


def _peak_resident() -> dict[str, int]:
    """``peak_rss_bytes`` of this process so far (Linux). ``ru_maxrss`` would hold what the parent had at the fork."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {"peak_rss_bytes": int(fields["VmHWM"].split()[0]) * 1024}
