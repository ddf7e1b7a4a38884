"""A process that measures cells: reads one a line from standard input, writes one JSON answer a line to a pipe."""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
# The CPU allocator's complaint is a plain RuntimeError; where an exception cannot be raised the process aborts with it.
OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "Cannot allocate memory",  # the loader's
    "Unable to allocate",  # NumPy's
    "not enough memory",
    "can't start new thread",
    "bad_alloc",
    "RESOURCE_EXHAUSTED",  # JAX's
    "MemoryError",
)


def main() -> None:
    """Entry point of ``python -m bench.harness.worker PIPE_FD PARENT_PID``."""
    pipe, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    with os.fdopen(pipe, "w") as answers:

        def tell(done: int, total: int) -> None:
            print(json.dumps({"done": done, "total": total}), file=answers, flush=True)

        for line in sys.stdin:
            request = json.loads(line)
            answer = run(request, tell)
            if request.get("kept"):
                let_go()  # before the answer: what fails here is this cell's doing, not the next one's
            print(json.dumps(answer, allow_nan=False), file=answers, flush=True)


def run(request: dict[str, Any], tell: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
    """Measure one cell: ``{cell, threads, directory, memory_limit_bytes, kept}`` -> a record's own fields.

    ``tell`` hears how far a long measurement has come. Of a process that is ``kept`` for more cells the code in memory
    counts, however old it is by now.
    """
    if limit := request.get("memory_limit_bytes"):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]  # left as it is: the next cell may have more than this one
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    import torch

    from amaml_core import InputError, ModelWarning
    from bench import plugins, probes, sources
    from bench.harness.versions import benchmark_version, git_revision
    from bench.problems import make_problem
    from bench.records import RESUMED_PROBES, Cell

    torch.set_num_threads(request["threads"])
    cell = Cell.model_validate(request["cell"])
    plugins.load(**request.get("plugins", {}))
    measure = probes.load(cell.probe)
    # what makes the number is loaded by now: whoever changes a source file from here on does not change it
    if request.get("kept"):
        sources.hold(plugins.packages())
    version = benchmark_version(cell.problem, cell.method, cell.probe)
    own = {"benchmark_version": version, "git_revision": (_first_revision if request.get("kept") else git_revision)()}
    try:
        problem = make_problem(cell.problem, cell.problem_options)
        _, target = problem.resolve_method(cell.method, cell.options)
        more: dict[str, Any] = {}
        if cell.probe in RESUMED_PROBES:
            directory = request.get("directory")  # of this version, which may have changed since the sweep began
            mine = Path(f"{directory}-{version}") if directory else None
            more = {"directory": mine, "tell": tell}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ModelWarning)
            measured = asdict(measure(problem, cell, **more))
        for one in told:
            if not issubclass(one.category, ModelWarning):
                warnings.showwarning(one.message, one.category, one.filename, one.lineno)
        notes = [str(one.message) for one in told if issubclass(one.category, ModelWarning)]
        measured["reason"] = " ".join(dict.fromkeys([measured["reason"], *notes])).strip()
    except InputError as error:
        return own | _failure("skipped", str(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        told = "The outer update needs more memory than it may take; use fewer steps, tasks or states."
        return own | _failure("oom", told)
    if request.get("kept"):
        measured["metrics"].pop("peak_rss_bytes", None)  # the most that any cell so far took, not this one
    for kind in ("metrics", "samples"):
        measured[kind] = {name: value for name, value in measured[kind].items() if _finite(value)}
    return {"target": target, **own, **measured}


def let_go() -> None:
    """Drop all that a measurement leaves behind, so that the next one starts as a fresh process would."""
    import torch

    if "torch._inductor.codecache" in sys.modules:  # else it would be imported for this
        from torch._inductor.codecache import PyCodeCache

        torch.compiler.reset()
        PyCodeCache.cache_clear()  # modules of compiled code, which hold its constants
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # pyright: ignore[reportAttributeAccessIssue]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the allocator's complaint."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


@cache
def _first_revision() -> str:
    """The revision of the sources when this process first asked for it."""
    from bench.harness.versions import git_revision

    return git_revision()


def _finite(value: float | list[float]) -> bool:
    return all(map(math.isfinite, value if isinstance(value, list) else [value]))


def _failure(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason, "metrics": {}, "samples": {}}


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the runner dies, however it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)


if __name__ == "__main__":
    main()
