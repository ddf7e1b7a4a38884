"""What the analyses reckon alike."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd


def pooled(rows: pd.DataFrame, metric: str) -> list[float]:
    """All samples of a metric over these rows; where a row kept none, its value."""
    values: list[float] = []
    for samples, value in zip(rows.samples, rows[metric], strict=True):
        values += samples.get(metric) or ([value] if value == value else [])
    return values


def median(values: list[float]) -> float:
    """Of these values; NaN where there are none."""
    return float(np.median(values)) if values else math.nan


def log_slope(x: list[float], y: list[float]) -> float:
    """The least-squares slope of log y over log x; NaN below two points."""
    if len(x) < 2 or min(y) <= 0:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
