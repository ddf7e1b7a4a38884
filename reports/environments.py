"""Where the numbers come from."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports import words
from reports.tables import Table, make_table


def environments(frame: pd.DataFrame) -> Table:
    """One row a machine: what all of its records agree on."""
    rows = []
    for key, group in frame.groupby("timing_key"):
        first, *others = group.environment
        same = {
            name: value
            for name, value in first.items()
            if name not in ("timing_key", "counter_key") and all(other.get(name) == value for other in others)
        }
        packages = same.pop("packages", None)
        told = [f"{name} {version}" for name, version in packages.items()] if isinstance(packages, dict) else []
        told += [_fact(name, value) for name, value in same.items() if value not in ("", None, 0)]
        rows.append({"environment": key or "unknown", "records": str(len(group)), "details": ", ".join(told)})
    return make_table("", rows, ("environment", "details"))


def _fact(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int | float):
        return f"{name.removesuffix('_bytes')} {words.size(value)}"
    return f"{name.replace('_', ' ')} {value}"
