"""Which source files define a number: their hash is the record's ``benchmark_version``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from bench.records import Cell

PEER_PACKAGES = ("jax", "jaxlib", "diffrax", "higher", "torchopt")


@cache
def source_hash(*sources: str) -> str:
    """The first 12 hex digits of the SHA-256 over these files and folders of Python files, e.g. "amaml_core"."""
    digest = hashlib.sha256()
    for source in sources:
        top, *rest = source.split("/")
        spec = find_spec(top)  # of a top-level package: finds it without importing it
        assert spec is not None and spec.origin is not None  # noqa: PT018
        path = Path(spec.origin).parent.joinpath(*rest)
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def benchmark_version(cell: Cell) -> str:
    """The version of the benchmark behind a cell's numbers: core, problem, oracles, probe, worker, peer."""
    from bench.peers import PEERS
    from bench.problems import PROBLEMS  # needs torch, which the readers of records do not have

    defining = _with_what_they_use(
        [f"bench.probes.{cell.probe}", *(base.__module__ for base in PROBLEMS[cell.problem].__mro__)]
    )
    peers = ("bench/peers",) if cell.method in PEERS else ()
    sources = source_hash(
        "amaml_core", *defining, "bench/probes/base.py", "bench/oracles.py", "bench/worker.py", *peers
    )
    if not peers:
        return sources
    told = [f"{name} {installed(name)}" for name in PEER_PACKAGES]  # theirs is the code that is measured
    return hashlib.sha256(" ".join([sources, *told]).encode()).hexdigest()[:12]


def _with_what_they_use(modules: Iterable[str]) -> list[str]:
    """The files of those of these modules that are the bench's, and of the bench's modules that they hold by name."""
    ours = {name for name in modules if name.startswith("bench.")}
    held = {
        value.__name__
        for name in ours
        for value in vars(import_module(name)).values()
        if isinstance(value, ModuleType) and value.__name__.startswith("bench.")
    }
    return sorted(f"{name.replace('.', '/')}.py" for name in ours | held)


def installed(package: str) -> str:
    """The version of an installed package, or empty."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
