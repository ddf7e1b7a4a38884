"""Errors against the number of states: the two studies of accuracy, orders of convergence, stability."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd

from reports.analysis.arithmetic import UNITS, mean, samples_of, spread

LINE = ["horizon", "series", "where"]  # of a figure of errors: one scheme at one horizon in one precision
Line = tuple[float, str, str]


def closed_form_study(frame: pd.DataFrame) -> pd.DataFrame:
    """The records of E1."""
    return frame[(frame.problem == "closed_form") & (frame.probe == "error") & frame.num_states.notna()]


def cosmixture_study(frame: pd.DataFrame) -> pd.DataFrame:
    """The records of E2: A-MAML's error on CosMixture, where a scheme was measured at three values of K or more."""
    rows = frame[
        (frame.problem == "cosmixture")
        & (frame.probe == "error")
        & (frame.method == "amaml")
        & frame.num_states.notna()
    ]
    return rows[rows.groupby(["setting", "where", "horizon", "series"]).num_states.transform("nunique") >= 3]


def error_points(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of the error to the flow gradient, one row a (horizon, series, precision, states).

    Of cells that differ only otherwise (in seed, say) the one with the most samples counts.
    """
    values = samples_of(rows, "rel_error_flow")
    means, spreads = (np.array([of(each) for each in values], dtype=float) for of in (mean, spread))
    points = rows.assign(count=[len(each) for each in values], mean=means, std=spreads)
    points.loc[points.status != "ok", ["mean", "std"]] = math.nan
    keys = ["setting", "horizon", "method", "series", "where", "num_states"]
    return points.sort_values([*keys, "count", "started_at"]).drop_duplicates(keys, keep="last")


def orders(points: pd.DataFrame) -> dict[Line, tuple[float, str]]:
    """The observed order of convergence between the last two numbers of states whose errors are above rounding.

    Above rounding means above 100 units of the precision: 1.2e-5 in float32, 2.2e-14 in float64. Lines without two
    such points are left out; the text says between which states.
    """
    found = {}
    for key, line in points.groupby(LINE):
        floor = 100 * UNITS.get(line.dtype.iloc[0], 0.0)
        for (k1, e1), (k2, e2) in pairwise(zip(line.num_states, line["mean"], strict=True)):
            if e1 > floor and e2 > floor and 0 < k1 < k2:
                found[key] = (math.log(e1) - math.log(e2)) / math.log(k2 / k1), f"{k1}–{k2}"
    return found


def smallest_stable(points: pd.DataFrame) -> dict[Line, int]:
    """The smallest number of states that was fine, as were all larger ones measured; lines without one are left out."""
    found = {}
    for key, line in points.groupby(LINE):
        for states, status in sorted(zip(line.num_states, line.status, strict=True), reverse=True):
            if status != "ok":
                break
            found[key] = int(states)
    return found
