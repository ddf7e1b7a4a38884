"""Peak tensor memory of one outer update, exactly, eager engine."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from bench.probes.base import Measurement, collected, eager_only
from bench.problems.base import BenchProblem
from bench.records import Cell


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators create inside this mode and that are still alive.

    What existed before is the resting level and not counted; views share their storage; what the autograd graph saved
    counts as long as it is held. Exact, deterministic, and blind to scratch space inside an operator. One thing it
    changes: autograd adds gradients that meet at a node in place, but not while a dispatch mode watches, so that a
    peak at such a place reads one gradient too high.

    Attributes:
        live: bytes alive now.
        peak: the most that were alive at once.
        saved: bytes among ``live`` that autograd holds for a backward pass now.
        peak_saved: the most that it held at once, which need not be when ``live`` was at its peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.saved = self.peak_saved = 0
        self._known = WeakIdKeyDictionary()  # storage -> its identity, None where it was there before
        self._identities = count()
        self._holders: Counter[int] = Counter()  # identity -> nodes of the graph that saved it
        self._stack = ExitStack()

    def __enter__(self) -> LiveBytes:
        """Start to count."""
        super().__enter__()
        self._stack.enter_context(saved_tensors_hooks(self._pack, lambda saved: saved.tensor))
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop to look at operators; storages that die later are still taken off ``live``."""
        self._stack.close()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operator, then take stock of what it made."""
        kwargs = kwargs or {}
        for storage in _storages((args, kwargs)):  # an input that no operator here made was there before
            self._known.setdefault(storage, None)
        out = func(*args, **kwargs)
        for storage in _storages(out):
            if storage not in self._known:
                self._known[storage] = next(self._identities)
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, size)
        return out

    def _free(self, size: int) -> None:
        self.live -= size

    def _pack(self, tensor: Tensor) -> _Saved:
        # detached, for a saved result comes with its node, which would own itself and never be freed
        saved, storage = _Saved(tensor.detach()), tensor.untyped_storage()
        identity = self._known.get(storage)
        if identity is not None:
            size = storage.nbytes()
            if not self._holders[identity]:
                self.saved += size
                self.peak_saved = max(self.peak_saved, self.saved)
            self._holders[identity] += 1
            weakref.finalize(saved, self._release, identity, size)
        return saved

    def _release(self, identity: int, size: int) -> None:
        self._holders[identity] -= 1
        if not self._holders[identity]:
            del self._holders[identity]
            self.saved -= size


class _Saved:
    """What a node of the graph holds in the place of a tensor: it dies with the node's claim on it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_iter(values) if isinstance(value, Tensor))


def measure(problem: BenchProblem, cell: Cell) -> Measurement:
    """``peak_live_bytes`` of one outer update, and ``peak_saved_bytes`` of it that autograd held for the way back.

    One update goes before, so that caches which grow in the first call are part of the resting level.
    """
    eager_only(cell, "memory")
    update = problem.update(cell, 0)
    update()
    with collected(), LiveBytes() as tracker:
        out = update()
    result = Measurement(metrics={"peak_live_bytes": tracker.peak, "peak_saved_bytes": tracker.peak_saved})
    result.count(out.stats)
    result.judge(out.status)
    return result
