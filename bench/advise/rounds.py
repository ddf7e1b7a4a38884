"""The rounds of a profile: what there is, what is leaner where that was too big, and the recommended one once more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bench.advise import profile
from bench.advise.advice import Advice, recommend
from bench.advise.candidate import Candidate, candidates
from bench.harness import runner
from bench.records import Cell, Record, Store

SWEEP = "profile"
SWEEP_AGAIN = "profile_again"  # apart, or a report would set means over more tasks beside the others' numbers
AGAIN = 0.1  # the share of the time that is kept for looking again at what is recommended


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        factory: "FILE.py:NAME".
        steps: trajectory lengths.
        lr: inner learning rate.
        device: "cpu" or "cuda".
        dtype: of the model.
        memory_bytes: that an update may take.
        tolerance: of the gradient's error.
    """

    factory: str
    steps: Sequence[int]
    lr: float
    device: str
    dtype: str
    memory_bytes: int
    tolerance: float


@dataclass
class Profile:
    """A question, and what has been found so far.

    Attributes:
        question: what is asked.
        store: where the records are.
        deadline: of all rounds, in ``time.monotonic()`` seconds.
        reporting: makes what tells of a round.
        say: prints a sentence for people.
        cells: that were wanted.
        records: of those that there are.
        interrupted: whether somebody asked to stop.
    """

    question: Question
    store: Store
    deadline: float
    reporting: Callable[[runner.Plan], AbstractContextManager[runner.Reporter]]
    say: Callable[[str], None]
    cells: list[Cell] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    interrupted: bool = False

    @property
    def found(self) -> list[Candidate]:
        """What the records say of each method at each length."""
        return candidates(self.records)

    @property
    def advice(self) -> Advice:
        """What they say all together."""
        return recommend(self.found, self.question.memory_bytes, self.question.tolerance)

    def run(self) -> None:
        """All rounds, as far as the time allows.

        ``amaml`` gets checkpoints where it was too big. Where no method will do, and some were too big, tasks are
        worked on one at a time. What is recommended is looked at on other tasks, until it holds there too.
        """
        asked, now = self.question, time.monotonic()
        before_last = self.deadline - AGAIN * max(self.deadline - now, 0.0)
        for chunk_size in (None, 1):
            own = {"device": asked.device, "dtype": asked.dtype, "chunk_size": chunk_size}
            more = self._round(profile.plan_cells(asked.factory, asked.steps, asked.lr, **own), before_last)
            big = [record.cell for record in more if profile.too_big(record, self._budget(before_last))]
            if leaner := profile.with_checkpoints(big):
                self._round(leaner, before_last)
            if self.interrupted or self.advice.best is not None or not big:
                break
        looked_at: list[str] = []
        while not self.interrupted and (best := self.advice.best) and best.cell.cell_id not in looked_at:
            looked_at.append(best.cell.cell_id)
            self._round(profile.on_other_tasks(best.cell), self.deadline, SWEEP_AGAIN)

    def _budget(self, deadline: float) -> profile.Budget:
        return profile.Budget(self.question.memory_bytes, deadline - time.monotonic())

    def _round(self, wanted: Iterable[Cell], deadline: float, sweep: str = SWEEP) -> list[Record]:
        """Measure these cells; their records."""
        if self.interrupted:
            return []
        cells = [*{cell.cell_id: cell for cell in wanted}.values()]  # two updates may become one with checkpoints
        plan = runner.plan(sweep, cells, self.store, retry_failed=True)  # the budget may have grown
        for complaint in [] if self.cells else plan.complaints:  # once
            self.say(complaint)
        with self.reporting(plan) as reporter:
            budget = self._budget(deadline)
            more, self.interrupted = profile.run(plan, self.store, budget, reporter=reporter, say=self.say)
        self.cells += cells
        self.records += more
        return more
