"""Seconds of one outer update."""

from __future__ import annotations

import resource
import statistics
import time

import torch
from torch.utils.benchmark import Timer

from bench.probes.base import Measurement
from bench.problems.base import BenchProblem
from bench.records import Cell

WARM_UP = 2
MIN_SAMPLES, MAX_SAMPLES, MAX_SECONDS = 5, 50, 2.0


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """``outer_update_seconds``: the median; every sample is one synchronised outer update, after a warm-up.

    At least ``MIN_SAMPLES`` samples, then as many as fit in ``MAX_SECONDS``. The set-up is not timed. The process's
    peak resident memory comes along: nothing that would disturb it runs here.
    """
    update = problem.update(cell, 0)
    timer = Timer("update()", globals={"update": update}, num_threads=torch.get_num_threads())
    out = update()
    for _ in range(WARM_UP - 1):
        update()
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < MIN_SAMPLES or (len(samples) < MAX_SAMPLES and time.perf_counter() - began < MAX_SECONDS):
        samples.append(timer.timeit(1).median)
    result = Measurement(samples={"outer_update_seconds": samples})
    result.metrics["outer_update_seconds"] = statistics.median(samples)
    result.metrics["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result.count(out.stats)
    result.judge(out.status)
    return result
