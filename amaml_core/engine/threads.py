"""Groups of tasks side by side, a thread each: compiled calls leave Python to others."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import cache
from threading import RLock, current_thread
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

NAMES = "amaml_core"  # what the names of our threads begin with
one_at_a_time = RLock()
"""Held while compiling, and while a module is called with other parameters: neither is made for several threads."""


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``function`` of each item, on a thread each; torch's own threads are shared out between them meanwhile.

    One after the other where a thread of ours, or autocast, which is a thread's own, would be lost by it.
    """
    if len(items) == 1 or torch.is_autocast_enabled("cpu") or current_thread().name.startswith(NAMES):
        return [function(item) for item in items]
    threads = torch.get_num_threads()

    def call(item: Item) -> Result:
        torch.get_num_threads()  # a new thread takes over the number of the process once; not later, over ours
        torch.set_num_threads(max(1, threads // len(items)))
        return function(item)

    others: list[Future[Result]] = []
    try:
        pool = _pool(os.getpid(), len(items) - 1)
        # context variables that a model may read are a thread's own
        others += (pool.submit(copy_context().run, call, item) for item in items[1:])
        return [call(items[0]), *(other.result() for other in others)]
    finally:
        try:
            wait(others)
        finally:
            torch.set_num_threads(threads)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that stay, as do the buffers that libraries keep for each; a forked process has none of them."""
    return ThreadPoolExecutor(threads, thread_name_prefix=NAMES)
