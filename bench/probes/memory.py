"""Peak memory of one outer update."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from bench.probes.base import Measurement
from bench.problems.base import BenchProblem
from bench.records import Cell


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators create inside this mode and that are still alive.

    What existed before is the resting level and not counted; views share their storage; what the autograd graph saved
    counts as long as it is held. Exact, deterministic, and blind to scratch space inside an operator.

    Attributes:
        live: bytes alive now.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operator, then take stock of what it made."""
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):  # an input that no operator here made was there before
            self._known.setdefault(storage, None)
        out = func(*args, **kwargs)
        for storage in _storages(out):
            if storage not in self._known:
                self._known[storage] = None
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, size)
        return out

    def _free(self, size: int) -> None:
        self.live -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_iter(values) if isinstance(value, Tensor))


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """``peak_live_bytes`` of one outer update, and on CUDA the allocator's peak above its resting level.

    One update goes before, so that caches which grow in the first call are part of the resting level.
    """
    update = problem.update(cell, 0)
    result = Measurement()
    update()
    if cell.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        resting = torch.cuda.memory_allocated()
        update()
        torch.cuda.synchronize()
        result.metrics["peak_cuda_allocated_bytes"] = torch.cuda.max_memory_allocated() - resting
    with LiveBytes() as tracker:
        out = update()
    result.metrics["peak_live_bytes"] = tracker.peak
    result.count(out.stats)
    result.judge(out.status)
    return result
