"""Methods, problems and probes of other people: from installed packages' entry points, or modules that a sweep names.

A module adds what it brings to the registries when it is imported: ``am.METHODS["mine"] = Mine``,
``bench.problems.PROBLEMS[...]``, ``bench.probes.PROBES["mine"] = __name__`` (a module with a ``measure``). A package
declares the same as entry points of the groups ``amaml_bench.methods``, ``amaml_bench.problems`` (name -> class) and
``amaml_bench.probes`` (name -> module).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from amaml_core import METHODS, InputError
from bench.probes import PROBES
from bench.problems import PROBLEMS

REGISTRIES: dict[str, dict[str, Any]] = {"methods": METHODS, "problems": PROBLEMS, "probes": PROBES}

modules: list[str] = []
"""That were named so far; workers import them too."""
folders: list[str] = []
"""In which they were looked for besides."""


def load(named: Sequence[str] = (), beside: Sequence[str] = ()) -> None:
    """Import what installed packages declare, and these modules.

    Args:
        named: full names of modules.
        beside: folders in which they are looked for after all others.

    Raises:
        InputError: one cannot be imported, or takes the name of something that is there.
    """
    for group, registry in REGISTRIES.items():
        for entry in entry_points(group=f"amaml_bench.{group}"):
            if entry.name not in registry or _source(registry[entry.name]) != entry.value:
                _guarded(f"{entry.value} of {group}", lambda e=entry, g=group, r=registry: r.update(_declared(e, g)))
    for folder in beside:
        if folder not in folders:
            folders.append(folder)
            sys.path.append(folder)
    for name in named:
        if name not in modules:
            _guarded(name, lambda name=name: import_module(name))
            modules.append(name)


def packages() -> set[str]:
    """The top-level packages that the registries' entries come from, ours among them."""
    return {
        _source(one).partition(".")[0].partition(":")[0]
        for registry in REGISTRIES.values()
        for one in registry.values()
    }


def _declared(entry: EntryPoint, group: str) -> dict[str, Any]:
    return {entry.name: entry.value if group == "probes" else entry.load()}


def _source(registered: Any) -> str:
    return registered if isinstance(registered, str) else f"{registered.__module__}:{registered.__qualname__}"


def _guarded(name: str, bring: Callable[[], object]) -> None:
    before = {kind: dict(registry) for kind, registry in REGISTRIES.items()}
    try:
        bring()
    except Exception as error:  # whatever somebody's module raises
        raise InputError(f"The plug-in {name} cannot be used ({type(error).__name__}: {error}); mend it.") from error
    for kind, registry in REGISTRIES.items():
        for key, value in before[kind].items():
            if registry.get(key) is not value:
                registry[key] = value
                raise InputError(f"The plug-in {name} replaces {key!r} of the {kind}; give it a name of its own.")
