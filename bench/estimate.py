"""How long a cell will take, from what earlier ones took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.records import Cell, Record

START_SECONDS = 2.5  # a worker's start: Python and torch
SAMPLING_SECONDS = 2.0  # that a time cell takes however short its update is
GUESSED_SECONDS_PER_STEP = 0.02  # where nothing like it was ever measured


@dataclass(frozen=True)
class Estimate:
    """An expected duration.

    Attributes:
        seconds: of all cells, one after the other.
        guessed: cells of which nothing like them was measured.
    """

    seconds: float
    guessed: int


def estimate(cells: Iterable[Cell], records: Sequence[Record]) -> Estimate:
    """The expected duration of these cells.

    A cell takes what it took before, under whatever version; else what the nearest trajectory length of the same
    probe, problem and method took, in proportion to the steps; else a guess.
    """
    exact = {record.cell_id: record.duration_s for record in records if record.status == "ok"}
    alike: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.status == "ok":
            alike.setdefault(_kind(record.cell), []).append(record)
    seconds, guessed = 0.0, 0
    for cell in cells:
        known = exact.get(cell.cell_id)
        if known is None:
            steps, near = cell.options["inner_steps"], alike.get(_kind(cell), [])
            if near:
                nearest = min(near, key=lambda r, s=steps: abs(math.log(r.cell.options["inner_steps"] / s)))
                fixed = START_SECONDS + SAMPLING_SECONDS * (cell.probe == "time")
                work = max(nearest.duration_s - fixed, 0.0)
                known = fixed + work * steps / nearest.cell.options["inner_steps"]
            else:
                known = START_SECONDS + GUESSED_SECONDS_PER_STEP * steps
                guessed += 1
        seconds += known
    return Estimate(seconds, guessed)


def _kind(cell: Cell) -> tuple[str, str, str]:
    return cell.probe, cell.problem, cell.method
