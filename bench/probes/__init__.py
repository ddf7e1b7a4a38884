"""One measurement each: ``measure(problem, cell) -> Measurement``; long ones also take a directory to go on from.

A probe is imported when it is asked for: what some of them bring along (SciPy, the profiler) takes others' time.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

NAMES = (
    "allocator",
    "counts",
    "error",
    "floor",
    "honesty",
    "memory",
    "quality",
    "references",
    "regression",
    "time",
    "tolerance",
)
PROBES = {name: f"bench.probes.{name}" for name in NAMES}
"""The one registry of probes, name -> module; plug-ins are added to it."""


def load(name: str) -> Callable[..., Any]:
    """The ``measure`` of one of ``PROBES``."""
    return import_module(PROBES[name]).measure
