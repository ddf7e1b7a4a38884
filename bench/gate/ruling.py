"""What blocks of times say: is the head slower than the other revision, case by case?

Letters are those of ``bench/gate/times.py``: A is the other revision, B the head, C the other revision as a control.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats as scipy_stats

from bench.gate.verdict import Check
from bench.stats import holm

FEWEST_BLOCKS = 10  # with fewer, ten cases cannot be told apart from chance at ALPHA
MOST_BLOCKS = 14  # all of their 2^14 sign flips are tried
ALPHA = 0.01
MARGIN = math.log(1.05)  # a slowdown that is worth a red light
CONFIDENCE = 0.95

Observation = Mapping[str, float]
"""Seconds of each case in one process."""
Block = Mapping[str, Sequence[Observation]]
"""The observations of each letter in one block."""


@dataclass(frozen=True)
class Effect:
    """One case's log-ratio of times over blocks.

    Attributes:
        mean: of the blocks' log-ratios.
        low: lower end of the interval for it (Student's t).
        high: upper end.
        p: of the one-sided sign-flip test for "slower", adjusted by Holm's method.
    """

    mean: float
    low: float
    high: float
    p: float


def effects(blocks: Sequence[Block], slow: str, fast: str) -> dict[str, Effect]:
    """Of each case: how much slower one letter is than another.

    The test takes all sign flips of the blocks' log-ratios: exact, whatever their distribution, as long as blocks are
    independent and it is symmetric where nothing has changed.
    """
    names = list(blocks[0][slow][0])
    ratios = log_ratios(blocks, slow, fast)
    adjusted = holm(sign_flip(ratios).tolist())
    ends = zip(*interval(ratios), strict=True)
    return {
        name: Effect(float(mean), float(low), float(high), p)
        for name, mean, (low, high), p in zip(names, ratios.mean(0), ends, adjusted, strict=True)
    }


def log_ratios(blocks: Sequence[Block], slow: str, fast: str) -> np.ndarray:
    """Of one letter's times to another's, ``[blocks, cases]``."""
    names = list(blocks[0][slow][0])
    return np.array([[_log_mean(b[slow], name) - _log_mean(b[fast], name) for name in names] for b in blocks])


def sign_flip(values: np.ndarray) -> np.ndarray:
    """One-sided p-values of "the mean is positive", over all sign flips: ``[cases]`` from ``[blocks, cases]``."""
    slack = 1e-12 * np.abs(values).sum(0)
    return (_signs(len(values)) @ values >= values.sum(0) - slack).mean(0)


@cache
def _signs(count: int) -> np.ndarray:
    """All of them, a row each."""
    return 1.0 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the means, by Student's t: two of ``[cases]`` from ``[blocks, cases]``."""
    half = _quantile(len(values)) * values.std(0, ddof=1) / math.sqrt(len(values))
    return values.mean(0) - half, values.mean(0) + half


@cache
def _quantile(count: int) -> float:
    return float(scipy_stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


def _log_mean(observations: Sequence[Observation], name: str) -> float:
    return sum(math.log(observation[name]) for observation in observations) / len(observations)


@dataclass(frozen=True)
class Ruling:
    """What the blocks of one stage say.

    Attributes:
        slower: cases with p < ``ALPHA`` whose whole interval lies beyond their margin.
        fine: cases whose interval ends below ``MARGIN``, where the control shows no more than that: a noisy control, or
            one that is off, must not let anything pass.
        alarmed: cases in which the control is "slower" or "faster" by the same rule: the same code twice.
        effects: of the head against the other revision.
        margins: log-ratio, by case: the larger of ``MARGIN`` and what the control shows there.
    """

    slower: tuple[str, ...]
    fine: tuple[str, ...]
    alarmed: tuple[str, ...]
    effects: dict[str, Effect]
    margins: dict[str, float]


def rule(blocks: Sequence[Block]) -> Ruling:
    """The verdict of one stage."""
    found, control, reverse = (effects(blocks, *pair) for pair in ("BA", "CA", "AC"))
    margins = {name: max(MARGIN, abs(e.low), abs(e.high)) for name, e in control.items()}
    return Ruling(
        tuple(name for name, e in found.items() if e.p < ALPHA and e.low > margins[name]),
        tuple(name for name, e in found.items() if e.high < MARGIN and margins[name] == MARGIN),
        tuple(name for name in found if any(c[name].p < ALPHA and c[name].low > MARGIN for c in (control, reverse))),
        found,
        margins,
    )


def judge(first: Sequence[Block], second: Callable[[], Sequence[Block]]) -> tuple[list[Check], list[str]]:
    """The checks and what is to be said of all of them.

    Args:
        first: the blocks of the first stage.
        second: runs the second stage, in the other order; it is asked for where the first calls a case slower, and
            judged on such cases alone.
    """
    ruling = rule(first)
    again = rule([_part(block, ruling.slower) for block in second()]) if ruling.slower else None
    doubt = bool(ruling.alarmed or (again and again.alarmed))
    checks = []
    for name, effect in ruling.effects.items():
        told = f"{_percent(effect.mean)} ({_percent(effect.low)} to {_percent(effect.high)}), p = {effect.p:.2g}"
        told += f", margin {_percent(ruling.margins[name])}"
        outcome = "pass" if name in ruling.fine else "insufficient"
        if again is not None and name in ruling.slower:
            confirmed = name in again.slower
            outcome = "fail" if confirmed else "insufficient"
            told += f"; the second stage {'agrees' if confirmed else 'does not agree'}"
            told += f": {_percent(again.effects[name].mean)}"
        if doubt:
            told, outcome = f"{told}; else {outcome}", "advisory"
        before, now = (_typical(first, letter, name) for letter in "AB")
        checks.append(Check(name, "outer_update_seconds", outcome, before, now, told + "."))
    notes = [f"{len(first)} blocks; a change below {_percent(MARGIN)} is let pass."]
    if doubt:
        who = ", ".join(sorted({*ruling.alarmed, *(again.alarmed if again else ())}))
        notes.append(f"The same code twice was told apart ({who}): on this machine, now, the times are advisory only.")
    return checks, notes


def _part(block: Block, names: Sequence[str]) -> Block:
    return {letter: [{name: seen[name] for name in names} for seen in block[letter]] for letter in block}


def _typical(blocks: Sequence[Block], letter: str, name: str) -> float:
    return math.exp(statistics.median(_log_mean(block[letter], name) for block in blocks))


def _percent(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.1f} %"
