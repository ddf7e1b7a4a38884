"""The published numbers of ``paper.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

Published = dict[tuple[float, int], tuple[float, float]]
PublishedRatings = dict[tuple[str, str, int, int], tuple[float, float]]
SHOTS = (10, 20)  # of the columns of tables 1 and 2


def published(table: str) -> dict[str, Published]:
    """A table of the paper: method -> (horizon, states) -> (mean, standard deviation).

    Args:
        table: "table4" (closed form) or "table5" (CosMixture).
    """
    return {
        method: {(float(horizon), states): (mean, std) for horizon, rows in by_t.items() for states, mean, std in rows}
        for method, by_t in _read()[table].items()
    }


def published_ratings() -> PublishedRatings:
    """Tables 1 and 2: (method as the paper calls it, problem, shots, steps) -> (mean nRMSE, standard deviation)."""
    return {
        (method, problem, shots, int(steps)): (mean, std)
        for steps, by_method in _read()["ratings"].items()
        for method, by_problem in by_method.items()
        for problem, columns in by_problem.items()
        for shots, (mean, std) in zip(SHOTS, columns, strict=True)
    }


def _read() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "paper.toml").read_text())
