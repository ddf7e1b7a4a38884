"""Two sets of results side by side, cell by cell."""

from __future__ import annotations

import pandas as pd

from bench.records import METRICS, Record, environment_key
from reports.load import InputError, Results, newest

COLUMNS = ["cell", "what", "metric", "A", "B", "B/A", "remark"]


def compare(a: Results, b: Results) -> pd.DataFrame:
    """One row a cell and metric that both hold, columns ``COLUMNS``, all strings.

    A ratio is given only where the environment key that the metric needs agrees; else the remark says why not.

    Raises:
        InputError: no cell is in both.
    """
    others = {record.cell_id: record for record in newest(b.records)}
    rows = [
        row for record in newest(a.records) if record.cell_id in others for row in _rows(record, others[record.cell_id])
    ]
    if not rows:
        raise InputError("The two stores share no cell; compare runs of the same sweep on the same kind of device.")
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(a: Record, b: Record) -> list[list[str]]:
    head = [a.cell_id, a.cell.label]
    if a.status != "ok" or b.status != "ok":
        remark = "; ".join(
            f"{side}: {record.reason or record.status}"
            for side, record in (("A", a), ("B", b))
            if record.status != "ok"
        )
        return [[*head, "status", a.status, b.status, "", remark]]
    rows = []
    for name in sorted(set(a.metrics) | set(b.metrics)):
        left, right = a.metrics.get(name), b.metrics.get(name)
        key = METRICS[name].key if name in METRICS else environment_key(a.cell.probe)
        here, there = a.environment.get(key), b.environment.get(key)
        ratio, remark = "", "" if a.benchmark_version == b.benchmark_version else "the benchmark's code differs"
        if left is None or right is None:
            remark = f"not comparable: only {'B' if left is None else 'A'} has it"
        elif here != there:
            remark = f"not comparable: {key} is {here} in A and {there} in B"
        elif left == right:
            ratio = "1"
        else:
            ratio = f"{right / left:.4g}" if left else "from zero"
        rows.append([*head, name, _number(left), _number(right), ratio, remark])
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |" for row in lines
    )
