"""What every section is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from bench.advise.document import Document
from bench.gate.calibration import Calibration
from reports import figures
from reports.analysis import contests, costs, precision


@dataclass(frozen=True)
class Evidence:
    """What was read, and what several sections take from it, made once and only where one asks.

    Attributes:
        frame: all records; see ``load.tabulate``.
        calibration: of the gate's times, where there is one.
        advice: what profiles said of the users' own problems.
    """

    frame: pd.DataFrame
    calibration: Calibration | None = None
    advice: Sequence[Document] = ()

    @cached_property
    def usual(self) -> pd.DataFrame:
        """The records of the sweeps that are not kept apart, one reading of memory an update."""
        return costs.one_memory(self.frame[self.frame.study == ""])

    @cached_property
    def comparisons(self) -> list[costs.Comparison]:
        """Costs and errors of the same updates."""
        return costs.comparisons(self.usual)

    @cached_property
    def scalings(self) -> dict[str, list[costs.Scaling]]:
        """Probe -> its laws over steps."""
        return {probe: costs.scalings(self.usual, probe) for probe in costs.METRIC_OF}

    @cached_property
    def readings(self) -> pd.DataFrame:
        """Both readings of memory of the updates that have both."""
        return costs.readings(self.usual)

    @cached_property
    def look(self) -> dict[str, dict[str, Any]]:
        """Label -> style, alike in all figures of costs."""
        named = [law.lines for laws in self.scalings.values() for law in laws]
        named += [found.rows for found in self.comparisons]
        return figures.styles(pair for table in named for pair in zip(table.method, table.label, strict=True))

    @cached_property
    def contests(self) -> list[contests.Contest]:
        """Of meta-training."""
        return contests.contests(self.frame)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Of work against precision."""
        return precision.cells(self.frame)
