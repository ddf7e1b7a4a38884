"""What is known of how often the gate's second tier is wrong. No torch, so that reports can use it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

CALIBRATION = "calibration.json"
QUIET = 0.03  # the standard deviation of a block's log-ratio up to which a case should find a slowdown of 10 %


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Live(_Strict):
    """A recorded run of identical code.

    Attributes:
        began_at: in UTC.
        minutes: that it took.
        blocks: of its first stage.
        revision: of both sides.
        verdict: the gate's line.
        suspects: cases that its first stage called slower.
        alarmed: cases in which its control alarmed.
    """

    began_at: str
    minutes: float
    blocks: int
    revision: str
    verdict: str
    suspects: list[str]
    alarmed: list[str]


class Case(_Strict):
    """What the second tier is worth on one case.

    Attributes:
        name: of the case.
        block_std: standard deviation of a block's log-ratio, head to other revision.
        passed: share of the resampled runs of identical code in which it passed; undecided in nearly all others.
        found: slowdown -> share of the resampled runs with it in which it failed, and nothing else did.
    """

    name: str
    block_std: float
    passed: float
    found: dict[str, float]


class Calibration(_Strict):
    """The figures.

    Attributes:
        command: that made them.
        timing_key: of the machine.
        seed: of the resampling.
        runs: resampled, of identical code.
        blocks: of each.
        false_alarms: of these runs those with a case that failed.
        false_alarm_limit: one-sided upper 95 % limit of their share (Clopper and Pearson 1934).
        suspected: runs whose first stage alone would have failed.
        control_alarms: runs whose control alarmed.
        planted_runs: for each case and slowdown.
        live: the recorded runs, as they were judged.
        cases: what is known of each.
    """

    command: str
    timing_key: str
    seed: int
    runs: int
    blocks: int
    false_alarms: int
    false_alarm_limit: float
    suspected: int
    control_alarms: int
    planted_runs: int
    live: list[Live]
    cases: list[Case]
