"""Peak memory of one outer update as the allocator itself tells it, any engine.

No dispatch mode may be active while it is read: one would push compiled code back to eager.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate

import torch
from torch._C._autograd import _disable_profiler, _enable_profiler, _prepare_profiler
from torch._C._profiler import ProfilerConfig, ProfilerState, RecordScope, _ExperimentalConfig
from torch.profiler import ProfilerActivity

from amaml_core.engine import graphs
from bench.probes.base import Measurement, collected, on_threads
from bench.problems.base import BenchProblem, Gradient
from bench.records import Cell

MAX_EVALUATIONS = 20_000  # gradients and products in one update: of a small network, about 1 GB of the profiler's log


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """``peak_allocated_bytes`` of one outer update above the resting level, after an update that is not counted.

    On the CPU from the profiler's allocation events, whose log grows with the update: past ``MAX_EVALUATIONS`` the
    row says that it was not read. On CUDA from the caching allocator, in blocks as it rounds them and as requested; of
    an update in CUDA graphs with the peak inside of them, and ``captured_bytes``, what they and their pool keep.
    A peer that does not allocate through torch tells what its compiler laid out (``allocated_bytes``).
    """
    update = problem.update(cell, 0)
    out = update()
    result = Measurement()
    result.count(out.stats)
    result.judge(out.status)
    evaluations = sum(out.stats.get(name, 0) for name in ("grad_evals", "linearizations", "hvp_evals"))
    del out
    if (laid_out := getattr(update, "allocated_bytes", None)) is not None:
        result.metrics["peak_allocated_bytes"] = laid_out
    elif cell.device != "cuda" and evaluations > MAX_EVALUATIONS:
        result.reason = result.reason or (
            f"The allocator was not read: {evaluations} gradients and products would fill the profiler's log, "
            f"which is capped at {MAX_EVALUATIONS}; peak_live_bytes has no such bound."
        )
    else:
        result.metrics |= peaks(update, cell.device)
    return result


def peaks(update: Callable[[], Gradient], device: str) -> dict[str, int]:
    """``peak_allocated_bytes`` of one update above the resting level, and on CUDA what else its allocator tells."""
    if device == "cuda":
        return _cuda_peaks(update)
    with on_threads(1), collected(), allocations() as changes:  # the log is of this thread alone
        update()
    return {"peak_allocated_bytes": max(accumulate(changes, initial=0))}


@contextmanager
def allocations() -> Iterator[Sequence[int]]:
    """The CPU allocator's changes in bytes, in order, there once this is left.

    ``torch.profiler`` would log every operator beside them, ten times as much; these are the calls that it makes
    itself, with a scope that operators are not in.
    """
    changes: list[int] = []
    config = ProfilerConfig(ProfilerState.KINETO, False, True, False, False, False, _ExperimentalConfig())
    _prepare_profiler(config, {ProfilerActivity.CPU})
    _enable_profiler(config, {ProfilerActivity.CPU}, {RecordScope.USER_SCOPE})  # pyright: ignore[reportCallIssue]
    try:
        yield changes
    finally:
        events = _disable_profiler().events()
        changes += [e.nbytes() for e in events if e.name() == "[memory]"]  # pyright: ignore[reportAttributeAccessIssue]


def _cuda_peaks(update: Callable[[], Gradient]) -> dict[str, int]:
    import pynvml

    with collected():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_stats()
        update()
        torch.cuda.synchronize()
        busy = torch.cuda.memory_stats()
    allocated, requested = (
        busy[f"{kind}_bytes.all.peak"] - resting[f"{kind}_bytes.all.current"] for kind in ("allocated", "requested")
    )
    peaks = {
        "peak_allocated_bytes": allocated,
        "peak_cuda_allocated_bytes": allocated,
        "peak_cuda_requested_bytes": requested,
    }
    if graphs.alive:  # what runs in them takes its memory from their pool, which they keep: it is read at the capture
        captured = graphs.sizes()
        peaks["peak_allocated_bytes"] = peaks["peak_cuda_allocated_bytes"] = allocated + captured["graph_peak_bytes"]
        del peaks["peak_cuda_requested_bytes"]
        peaks |= captured | {"captured_bytes": captured["graph_pool_bytes"] + captured["graph_exec_bytes"] + allocated}
    with suppress(RuntimeError, ModuleNotFoundError, pynvml.NVMLError):  # context only: not every driver tells it
        peaks["device_used_bytes"] = torch.cuda.device_memory_used()
    return peaks
