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
from bench.calibration import Calibration, Case, Live
from bench.gate_time import Block, Observations, judge, log_ratios, rule
from bench.verdict import Verdict

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
        found.append(one)
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
    """Resample whole blocks, with all of their letters as they were: what is odd about a place in the order stays.

    The second stage is drawn likewise, with the sides exchanged as its order has them.
    """
    rng = np.random.default_rng(seed)
    pool = [block for one in recorded for block in one.stages[0]]
    count = min(len(one.stages[0]) for one in recorded)
    names = list(pool[0]["A"][0])

    def draw(slowdown: float = 1.0, case: str = "") -> tuple[set[str], int, set[str]]:
        """The cases that failed, the suspects of the first stage, and the cases that passed."""
        asked = []

        def second(only: Sequence[str]) -> list[Block]:
            asked.extend(only)
            return [_slower(_part(_exchanged(block), only), case, slowdown) for block in _sample(rng, pool, count)]

        checks, _ = judge([_slower(block, case, slowdown) for block in _sample(rng, pool, count)], second)
        by_outcome = {kind: {check.case for check in checks if check.outcome == kind} for kind in ("fail", "pass")}
        return by_outcome["fail"], len(asked), by_outcome["pass"]

    alarms, suspected, passed = 0, 0, Counter[str]()
    for _ in range(runs):
        failed, suspects, fine = draw()
        alarms += bool(failed)
        suspected += bool(suspects)
        passed.update(fine)
    say(f"{alarms} of {runs} resampled runs of identical code failed.")
    control = sum(bool(rule(_sample(rng, pool, count)).alarmed) for _ in range(runs))
    spread = np.sqrt(np.mean([log_ratios(one.stages[0], "B", "A").var(0, ddof=1) for one in recorded], axis=0))
    cases = []
    for name, std in zip(names, spread.tolist(), strict=True):
        found = {
            f"{slowdown:.2f}": sum(draw(slowdown, name)[0] == {name} for _ in range(planted_runs)) / planted_runs
            for slowdown in SLOWDOWNS
        }
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


def _sample(rng: np.random.Generator, pool: Sequence[Block], count: int) -> list[Block]:
    return [pool[i] for i in rng.integers(len(pool), size=count)]


def _exchanged(block: Block) -> Block:
    return {"A": block["B"], "B": block["A"], "C": block["C"]}


def _part(block: Block, only: Sequence[str]) -> Block:
    return {letter: [{name: seen[name] for name in only} for seen in block[letter]] for letter in block}


def _slower(block: Block, case: str, factor: float) -> Block:
    if not case:
        return block
    changed = [{name: value * (factor if name == case else 1.0) for name, value in seen.items()} for seen in block["B"]]
    return {**block, "B": changed}


def _live(one: Observations) -> Live:
    first, *more = one.stages
    checks, notes = judge(first, lambda only: more[0])
    ruling = rule(first)
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
