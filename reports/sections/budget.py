"""Which initialisation is the best under which budget of time and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports import words
from reports.analysis.contests import Contest
from reports.analysis.verdicts import best_within
from reports.evidence import Evidence
from reports.section import Section
from reports.sections.training import DIGITS
from reports.tables import Table, make_table

SECONDS = (10, 30, 100, 300, 1000)
SIZES = (2**18, 2**20, 2**22, 2**24)


def section(evidence: Evidence) -> Section:
    """The best of all that were trained by the usual protocol."""
    usual = [contest for contest in evidence.contests if not contest.variant]
    weighed = any(run.bytes == run.bytes for contest in usual for run in contest.trained)
    return Section(
        "budget",
        "Which initialisation under which budget",
        "experiments",
        "The best initialisation of all that were trained, and its mean nRMSE on the test tasks after adaptation. "
        "All methods have the same tasks, start and outer updates; a training that ends before its time is up "
        "keeps what it had. What was trained on fewer seeds is left out. Seconds are those of the training, with "
        "another one beside it on the machine, compilation not included; memory is the allocator's peak of the "
        "first outer update.",
        [within_time(usual)] * bool(usual) + [within_memory(usual)] * weighed,
    )


def within_time(contests: Sequence[Contest]) -> Table:
    """The best initialisation after so many seconds of training, one column a contest."""
    rows = []
    for seconds in [*SECONDS, math.inf]:
        head = "all updates" if seconds == math.inf else words.seconds(seconds)
        rows.append({"training": head} | {_column(c): _best(c, seconds=seconds) for c in contests})
    return make_table("By time of training, whatever the memory", rows, ("training", *map(_column, contests)))


def within_memory(contests: Sequence[Contest]) -> Table:
    """The best initialisation with so much memory for an update, after all updates."""
    rows = []
    for size in [*SIZES, math.inf]:
        head = "any" if size == math.inf else words.size(size)
        rows.append({"memory": head} | {_column(c): _best(c, size=size) for c in contests})
    return make_table("By memory of an update, after all updates", rows, ("memory", *map(_column, contests)))


def _column(contest: Contest) -> str:
    return f"{contest.title}, {words.plural(contest.test_steps, 'step')}"


def _best(contest: Contest, seconds: float = math.inf, size: float = math.inf) -> str:
    found = best_within(contest, seconds, size)
    return f"{found[0].name} {words.fixed(found[1], DIGITS)}" if found else words.MISSING
