"""How often the gate's second tier is wrong: its verdicts over runs resampled from recorded ones of identical code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from scipy import stats as scipy_stats

from amaml_core import InputError
from bench.gate.calibration import Calibration, Case, Live
from bench.gate.ruling import Block, judge, log_ratios, rule
from bench.gate.times import Observations
from bench.gate.verdict import Outcome, Verdict

RUNS = 2000  # of identical code
PLANTED_RUNS = 500  # a case and slowdown
SLOWDOWNS = (1.10, 1.15)
CONFIDENCE = 0.95


def read(paths: Sequence[Path]) -> list[Observations]:
    """Finished runs of identical code on one machine.

    Raises:
        InputError: a file is none of that.
    """
    found = []
    for path in paths:
        try:
            one = Observations.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"There is no {path}; name what gate --against wrote.") from None
        except ValidationError as error:
            raise InputError(f"{path} holds no observations ({str(error).splitlines()[0]}).") from None
        if one.base != one.head or one.head.endswith("+dirty"):
            told = f"{path} compares {one.base} with {one.head}"
            raise InputError(f"{told}; only identical code tells of false alarms: gate --against HEAD, clean.")
        if not one.ended_at:
            raise InputError(f"{path} is of a run that did not end; leave it out.")
        if one.gone_on_at:
            raise InputError(f"{path} is of a run that was cut off and gone on with later; leave it out.")
        found.append(one)
    if len({one.began_at for one in found}) < len(found):
        raise InputError("The same run is named twice; name each once.")
    if len({tuple(sorted(one.stages[0][0]["A"][0])) for one in found}) > 1:
        raise InputError("The runs do not have the same cases; take runs of one version of the suite.")
    if len(keys := {one.environment["timing_key"] for one in found}) != 1:
        raise InputError(f"Observations of one machine are needed, not of {len(keys)}: {'; '.join(sorted(keys))}.")
    return found


def calibrate(
    recorded: Sequence[Observations],
    command: str,
    say: Callable[[str], None],
    *,
    runs: int = RUNS,
    planted_runs: int = PLANTED_RUNS,
    seed: int = 0,
) -> Calibration:
    """Each resampled run takes one of the recorded ones and draws whole blocks of it, for both stages.

    So what a recorded run had throughout, or what is odd about a place in the order, stays.
    """
    rng = np.random.default_rng(seed)
    count = min(len(one.stages[0]) for one in recorded)

    def draw(slowdown: float = 1.0, case: str = "") -> tuple[list[Block], dict[str, Outcome]]:
        """The blocks of the first stage, and the outcome of each case."""
        pool = recorded[int(rng.integers(len(recorded)))].stages[0]

        def stage() -> list[Block]:
            return [_slower(pool[int(i)], case, slowdown) for i in rng.integers(len(pool), size=count)]

        first = stage()
        checks, _ = judge(first, stage)
        return first, {check.case: check.outcome for check in checks}

    alarms, suspected, control, passed = 0, 0, 0, Counter[str]()
    for _ in range(runs):
        first, outcomes = draw()
        ruling = rule(first)
        alarms += "fail" in outcomes.values()
        suspected += bool(ruling.slower)
        control += bool(ruling.alarmed)
        passed.update(name for name, outcome in outcomes.items() if outcome == "pass")
    say(f"{alarms} of {runs} resampled runs of identical code failed.")
    spread = np.sqrt(np.mean([log_ratios(one.stages[0], "B", "A").var(0, ddof=1) for one in recorded], axis=0))
    cases = []
    for name, std in zip(recorded[0].stages[0][0]["A"][0], spread.tolist(), strict=True):
        found = {}
        for slowdown in SLOWDOWNS:
            planted = [draw(slowdown, name)[1] for _ in range(planted_runs)]
            caught = [[case for case, outcome in one.items() if outcome == "fail"] == [name] for one in planted]
            found[f"{slowdown:.2f}"] = sum(caught) / planted_runs
        cases.append(Case(name=name, block_std=round(std, 5), passed=passed[name] / runs, found=found))
        say(f"{name}: a block's standard deviation {100 * std:.1f} %; found {found}")
    limit = scipy_stats.binomtest(alarms, runs, alternative="less").proportion_ci(CONFIDENCE).high
    return Calibration(
        command=command,
        timing_key=recorded[0].environment["timing_key"],
        seed=seed,
        runs=runs,
        blocks=count,
        false_alarms=alarms,
        false_alarm_limit=float(limit),
        suspected=suspected,
        control_alarms=control,
        planted_runs=planted_runs,
        live=[_live(one) for one in recorded],
        cases=cases,
    )


def _slower(block: Block, case: str, factor: float) -> Block:
    if not case:
        return block
    changed = [{name: value * (factor if name == case else 1.0) for name, value in seen.items()} for seen in block["B"]]
    return {**block, "B": changed}


def _live(one: Observations) -> Live:
    first, *more = one.stages
    ruling = rule(first)
    if ruling.slower and not more:
        raise InputError(
            f"The run of {one.began_at} lacks the second stage that it needs by today's rules; leave it out."
        )
    checks, notes = judge(first, lambda: more[0])
    took = datetime.fromisoformat(one.ended_at) - datetime.fromisoformat(one.began_at)
    return Live(
        began_at=one.began_at,
        minutes=round(took.total_seconds() / 60, 1),
        blocks=len(first),
        revision=one.head,
        verdict=Verdict(f"gate --against {one.against}", checks, notes).line,
        suspects=list(ruling.slower),
        alarmed=list(ruling.alarmed),
    )
