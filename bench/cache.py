"""Where what takes long to come by is kept, for all programs of a user."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def folder(kind: str) -> Path:
    """Of fetched data sets, oracles or verdicts: below ``AMAML_BENCH_CACHE``, else in the user's own cache."""
    own = os.environ.get("AMAML_BENCH_CACHE")
    return (Path(own) if own else user_cache_path("amaml-bench")) / kind
