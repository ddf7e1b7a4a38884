"""How long cells will take, from what earlier ones took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.records import Cell, Record

START_SECONDS = 2.5  # a worker's start: Python and torch
SECONDS_PER_STEP = 0.02  # of a small network, until it is known better
SECONDS_TRAINING = 1e-4  # of a small network, compiled, a step and an outer update
DOUBT = 625.0  # steps²: how far apart measured lengths must lie to outweigh that, (0.5 s of noise / 0.02 s a step)²


@dataclass(frozen=True)
class Estimate:
    """An expected duration.

    Attributes:
        seconds: of all cells, one after the other.
        guessed: cells of which nothing like them was measured.
    """

    seconds: float
    guessed: int


def estimate(cells: Iterable[Cell], records: Sequence[Record], start: float = START_SECONDS) -> Estimate:
    """The expected duration of these cells, the start of their worker, of ``start`` seconds, included.

    A cell takes what it took before, under whatever version; else what a line through the durations of the same probe,
    problem and method over the number of steps says, its slope drawn towards ``SECONDS_PER_STEP``; else a guess.
    """
    exact: dict[str, float] = {}
    alike: dict[tuple[str, str, str, int | None], list[tuple[int, float]]] = {}
    for record in records:
        if record.status == "ok":
            exact[record.cell_id] = record.duration_s
            alike.setdefault(_kind(record.cell), []).append((record.cell.options["inner_steps"], record.duration_s))
    seconds, guessed = 0.0, 0
    for cell in cells:
        steps = cell.options["inner_steps"]
        if cell.cell_id in exact:
            seconds += exact[cell.cell_id]
        elif points := alike.get(_kind(cell)):
            middle, level = fmean(n for n, _ in points), fmean(took for _, took in points)
            rise = sum((n - middle) * (took - level) for n, took in points)
            slope = (DOUBT * SECONDS_PER_STEP + rise) / (DOUBT + sum((n - middle) ** 2 for n, _ in points))
            seconds += max(level + slope * (steps - middle), start)
        else:
            updates = cell.problem_options.get("outer_updates")
            seconds += start + steps * (SECONDS_PER_STEP if updates is None else SECONDS_TRAINING * updates)
            guessed += 1
    return Estimate(seconds, guessed)


def _kind(cell: Cell) -> tuple[str, str, str, int | None]:
    return cell.probe, cell.problem, cell.method, cell.problem_options.get("outer_updates")
