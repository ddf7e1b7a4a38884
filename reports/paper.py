"""The published numbers of ``paper.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path

Published = dict[tuple[float, int], tuple[float, float]]


def published(table: str) -> dict[str, Published]:
    """A table of the paper: method -> (horizon, states) -> (mean, standard deviation).

    Args:
        table: "table4" (closed form) or "table5" (CosMixture).
    """
    data = tomllib.loads((Path(__file__).parent / "paper.toml").read_text())[table]
    return {
        method: {(float(horizon), states): (mean, std) for horizon, rows in by_t.items() for states, mean, std in rows}
        for method, by_t in data.items()
    }
