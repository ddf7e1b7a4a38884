"""Which source files define a number: their hash is the record's ``benchmark_version``."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path


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


def benchmark_version(probe: str) -> str:
    """The version of the benchmark behind a probe's numbers: core, problems, oracles, the probe and the worker."""
    return source_hash(
        "amaml_core", "bench/problems", "bench/oracles.py", f"bench/probes/{probe}.py", "bench/worker.py"
    )
