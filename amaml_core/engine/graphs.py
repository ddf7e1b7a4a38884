"""Functions of tensors captured as CUDA graphs: the host launches all of their kernels by one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakSet, ref

import torch
from torch import Tensor

from amaml_core.engine.threads import one_at_a_time
from amaml_core.surroundings import same

copy_all: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]  # one kernel for many tensors
FEW = 1000  # numbers of a tensor on the host that a kernel may have been given as they were
MOST = 32  # graphs that a problem keeps at once; that not used for longest goes first


@dataclass(frozen=True)
class Recording:
    """What a capture left.

    Attributes:
        replay: launches everything again, on the same memory.
        outputs: what the captured call returned; each replay overwrites them.
        graph: what holds the memory.
        turn: entered around a replay and the copies before and after it.
        peak_bytes: the most that was allocated at once inside.
        pool_bytes: by how much the graphs' pool grew for it.
        exec_bytes: of the executable graph, which lies outside torch's allocator.
    """

    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]
    graph: Any = None
    turn: Callable[[], AbstractContextManager[None]] = nullcontext
    peak_bytes: int = 0
    pool_bytes: int = 0
    exec_bytes: int = 0


def possible(device: torch.device) -> bool:
    """Whether there are graphs on this device: they are captured on the current one of CUDA."""
    return device.type == "cuda" and device.index in (None, torch.cuda.current_device())


def memory(value: object) -> Hashable:
    """Of a tensor that model or loss holds: where a graph reads it, or what it reads from the host only once."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return None
    alone = value.is_cpu and value.numel() <= FEW  # a larger one no capture reads
    return str(value.tolist()) if alone else value.data_ptr()


class Graph:
    """A function of tensors, captured for the shapes of the examples, that is replayed on copies of its arguments.

    Results are copies too: nothing that is handed out lies in the graph's memory. All graphs share one pool, for they
    take turns, whichever threads and streams replay them, and none reads what another left there. A capture resets the
    peaks of ``torch.cuda``'s memory statistics, of which it reads its own.

    Args:
        function: of tensors, without any read by the host.
        examples: as it will be called.
        own: so many of the arguments may be others at each call; the rest stays as it is for an owner.

    Raises:
        RuntimeError: something in it cannot be captured.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor], own: int) -> None:
        self.own, self.owner = own, ref(self)
        inputs = [example.detach().clone(memory_format=torch.contiguous_format) for example in examples]
        self.inputs, self.recording = inputs, record(lambda: tuple(one.detach() for one in function(*inputs)))
        # else the next replays would read what this one has left, and nobody would notice
        if not all(same(mine, given.detach()) for mine, given in zip(inputs, examples, strict=True)):
            raise RuntimeError("the model or the loss writes to what it is given")
        alive.add(self)

    def __call__(self, *arguments: Tensor, owner: object) -> tuple[Tensor, ...]:
        """The function's results for these arguments."""
        with one_at_a_time, torch.no_grad(), self.recording.turn():
            changed = self.own if self.owner() is owner else len(arguments)
            self.owner = ref(owner)
            if changed:
                copy_all(self.inputs[:changed], arguments[:changed])
            self.recording.replay()
            results = [torch.empty_like(output) for output in self.recording.outputs]
            copy_all(results, self.recording.outputs)
            return tuple(results)


alive: WeakSet[Graph] = WeakSet()
"""All graphs that there are."""


def sizes() -> dict[str, int]:
    """What all graphs take, in bytes (see ``Recording``): the largest peak, for they take turns, and sums."""
    every = [graph.recording for graph in alive]
    return {
        "graph_peak_bytes": max((one.peak_bytes for one in every), default=0),
        "graph_pool_bytes": sum(one.pool_bytes for one in every),
        "graph_exec_bytes": sum(one.exec_bytes for one in every),
    }


def record(call: Callable[[], tuple[Tensor, ...]]) -> Recording:
    """Capture what a call launches, after one that warms up: compilation and libraries' handles can't be captured."""
    stream = _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    resting = torch.cuda.memory_allocated()
    pool = next((graph.recording.graph.pool() for graph in alive), None)
    before = _pooled(pool)
    graph = torch.cuda.CUDAGraph()
    # other threads of the program may go on to allocate meanwhile
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        outputs = call()
    peak = torch.cuda.max_memory_allocated() - resting
    graph.replay()  # the first one uploads the executable
    torch.cuda.synchronize()
    executable = max(free - torch.cuda.mem_get_info()[0] - (torch.cuda.memory_reserved() - reserved), 0)
    return Recording(graph.replay, outputs, graph, _turn, peak, _pooled(graph.pool()) - before, executable)


def _pooled(pool: Any) -> int:
    """Bytes of the segments of a pool."""
    return sum(one["total_size"] for one in torch.cuda.memory_snapshot() if one["segment_pool_id"] == pool)


@contextmanager
def _turn() -> Iterator[None]:
    """On the current stream, after the last replay on any other."""
    last, stream = _last(torch.cuda.current_device()), torch.cuda.current_stream()
    stream.wait_event(last)
    try:
        yield
    finally:
        last.record(stream)


@cache
def _last(device: int) -> torch.cuda.Event:
    """Of the last replay on a device; one that was not recorded yet is not waited for."""
    return torch.cuda.Event()


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """What everything is captured on: memory of a pool is reused on the stream only that it was taken for."""
    return torch.cuda.Stream(device)
