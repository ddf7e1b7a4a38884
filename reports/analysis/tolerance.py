"""What a gradient to a tolerance costs, beside settings chosen by hand at the same error (sweep tolerance)."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd

from reports.analysis.arithmetic import mean, pooled

WHERE = ["problem_label", "horizon", "device", "dtype"]


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell of the probe.

    Columns: ``WHERE``; ``asked``, NaN where a setting was chosen by hand; ``scheme``; ``error`` and ``price`` of an
    update after the first, ``first``, the price of that; ``worst`` error, ``met`` and ``updates``. An error is the
    geometric mean over the draws: of a mean the worst draw alone would decide.
    """
    rows = frame[(frame.probe == "tolerance") & (frame.status == "ok")]
    found = []
    for _, row in rows.iterrows():
        options, one = json.loads(row["options"]), rows.loc[[row.name]]
        errors = [value for name in ("rel_error", "next_rel_error") for value in pooled(one, name)]
        if not errors or min(errors) <= 0 or len(errors) < row["draws"]:
            continue
        found.append(
            {name: row[name] for name in WHERE}
            | {
                "asked": options.get("grad_rtol", math.nan),
                "scheme": f"{options['forward']}/{options['backward']}",
                "error": math.exp(mean(np.log(pooled(one, "next_rel_error")))),
                "worst": max(errors),
                "price": row["next_price"],
                "first": row["price"],
                "met": row["met_draws"],
                "updates": row["draws"],
            }
        )
    return pd.DataFrame(found)


def chosen_price(by_hand: pd.DataFrame, error: float) -> float:
    """The least price of a setting chosen by hand at an error, between two of them on a line of logarithms.

    NaN where none of them is so exact.
    """
    front: list[tuple[float, float]] = []  # from the most exact to the cheapest
    for row in by_hand.sort_values(["error", "price"]).itertuples():
        if not front or row.price < front[-1][1]:
            front.append((float(row.error), float(row.price)))
    if not front or error < front[0][0]:
        return math.nan
    return float(math.exp(np.interp(math.log(error), *np.log(np.array(front)).T)))


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that asked for a tolerance, with ``chosen``: the least price by hand at the error that they have."""
    if not len(table):
        return table
    groups = dict(iter(table[table.asked.isna()].groupby(WHERE)))
    mine = table[table.asked.notna()].sort_values([*WHERE, "asked"], ascending=[True] * len(WHERE) + [False])
    known = [groups.get(tuple(row[name] for name in WHERE), table.iloc[:0]) for _, row in mine.iterrows()]
    return mine.assign(chosen=[chosen_price(rows, error) for rows, error in zip(known, mine.error, strict=True)])
