"""What the analyses reckon alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # of rounding


def samples_of(rows: pd.DataFrame, metric: str) -> list[list[float]]:
    """Of each row all samples of a metric; where it kept none, its value."""
    return [
        samples.get(metric) or ([value] if value == value else [])
        for samples, value in zip(rows.samples, rows[metric], strict=True)
    ]


def pooled(rows: pd.DataFrame, metric: str) -> list[float]:
    """All samples of a metric over these rows."""
    return [value for values in samples_of(rows, metric) for value in values]


def median(values: Sequence[float]) -> float:
    """Of these values; NaN where there are none."""
    return float(np.median(values)) if len(values) else math.nan


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Of what is known of these values; NaN where nothing is."""
    known = _known(values)
    return float(np.mean(known)) if len(known) else math.nan


def spread(values: Sequence[float] | np.ndarray) -> float:
    """The standard deviation of what is known of these values; NaN below two, infinite where it exceeds a float."""
    known = _known(values)
    with np.errstate(over="ignore"):
        return float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


def _known(values: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return values[~np.isnan(values)]


def ratio(value: float, to: float) -> float:
    """A quotient; NaN to zero."""
    return float(value) / float(to) if to else math.nan


def log_slope(x: list[float], y: list[float]) -> float:
    """The least-squares slope of log y over log x; NaN below two points."""
    if len(x) < 2 or min(y) <= 0 or max(y) == math.inf:
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
