"""What contests say: duels on the same tasks, the verdict on A-MAML, budgets, and how an error may be misreckoned."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata, wilcoxon

from bench.stats import holm
from reports.analysis.arithmetic import mean
from reports.analysis.contests import OURS, Contest, Run

LEVEL = 0.05  # of significance, as in the paper
SCALES = ("target_std", "target_rms", "query_count")  # samples of each test task beside its error


@dataclass(frozen=True)
class Duel:
    """Two runs on the same test tasks.

    Attributes:
        difference: mean of the nRMSE of the first less that of the second.
        wins: the share of tasks on which the first is better.
        p: of Wilcoxon's two-sided signed-rank test over all tasks of the shared seeds, adjusted by Holm's method for
            the duels that it was made with. It tells of these trainings: the tasks of a seed share one.
        lower: whether the first is lower in the mean, in its ranks and in every shared seed.
        higher: likewise.
    """

    difference: float
    wins: float
    p: float
    lower: bool
    higher: bool


def duels(mine: Run, others: Sequence[Run]) -> dict[str, Duel]:
    """One run against others: name -> duel. Those without a shared seed and the same tasks in it are left out."""
    made: dict[str, Duel] = {}
    for other in others:
        shared = sorted(mine.nrmse.keys() & other.nrmse.keys())
        seeds = [seed for seed in shared if len(mine.nrmse[seed]) == len(other.nrmse[seed])]
        gap = np.concatenate([np.empty(0), *(mine.nrmse[seed] - other.nrmse[seed] for seed in seeds)])
        gap = gap[~np.isnan(gap)]
        if len(gap) and other is not mine:
            p = float(wilcoxon(gap).pvalue) if np.any(gap) else 1.0
            ranks = float((np.sign(gap) * rankdata(np.abs(gap))).sum())
            signs = [float(gap.mean()), ranks, *(mine.by_seed[seed] - other.by_seed[seed] for seed in seeds)]
            lower, higher = (all(sign * s > 0 for s in signs) for sign in (-1, 1))
            made[other.name] = Duel(float(gap.mean()), float((gap < 0).mean()), p, lower, higher)
    adjusted = holm([duel.p for duel in made.values()])
    return {name: replace(duel, p=p) for (name, duel), p in zip(made.items(), adjusted, strict=True)}


@dataclass(frozen=True)
class Verdict:
    """On "A-MAML is best" in one contest, among the paper's methods.

    Attributes:
        best: the name with the lowest mean nRMSE over the seeds that all of them have.
        ours: whether that is A-MAML.
        clear: whether A-MAML is lower than every other with p < ``LEVEL``, and in every seed.
        beaten_by: names that are lower than A-MAML likewise.
        seeds: in how many of the seeds A-MAML is the lowest; a seed in which it diverged is lost.
        of_seeds: seeds in which A-MAML was trained.
        stopped: the name with the lowest mean, had each training stopped at its best look.
    """

    best: str
    ours: bool
    clear: bool
    beaten_by: tuple[str, ...]
    seeds: int
    of_seeds: int
    stopped: str


def verdict(contest: Contest) -> Verdict | None:
    """None where A-MAML was not trained, or no other was."""
    mine, rivals = contest.runs.get(OURS), contest.rivals
    if mine is None or not [run for run in rivals if run is not mine]:
        return None
    fought = duels(mine, rivals)
    seeds = contest.seeds
    best = min(rivals, key=lambda run: run.mean(seeds))
    tried = sorted({*mine.nrmse, *mine.failed})
    able = {seed: [run for run in rivals if seed in run.nrmse] for seed in tried}
    first = [min(runs, key=lambda run, s=seed: run.by_seed[s]) for seed, runs in able.items() if runs]
    return Verdict(
        best.name,
        best is mine,
        best is mine and not mine.failed and all(duel.lower and duel.p < LEVEL for duel in fought.values()),
        tuple(name for name, duel in fought.items() if duel.higher and duel.p < LEVEL),
        sum(run is mine for run in first),
        len(tried),
        min(rivals, key=lambda run: (math.isnan(look := run.best_look(seeds)), look)).name,
    )


def reached(run: Run, seconds: float, seeds: Collection[int]) -> float:
    """The mean nRMSE after adaptation that a training of so many seconds would reach, between two looks linearly.

    A training that was over before is as good as it was then; NaN for a guess.
    """
    known = [run.learning[seed] for seed in seeds if seed in run.learning]
    return float(np.mean([np.interp(seconds, spent, nrmse) for _, spent, nrmse in known])) if known else math.nan


def best_within(contest: Contest, seconds: float = math.inf, size: float = math.inf) -> tuple[Run, float] | None:
    """The trained run with the lowest nRMSE within a budget of time and of memory a training has, and that nRMSE.

    A run whose memory was not measured fits no bound on it.
    """
    able = [run for run in contest.comparable if run.learning and (size == math.inf or run.bytes <= size)]
    priced = [(reached(run, seconds, contest.seeds), run) for run in able]
    if not priced:
        return None
    error, run = min(priced, key=lambda pair: pair[0])
    return run, error


def slips(run: Run) -> dict[str, float]:
    """What one may have divided by what instead, and called nRMSE; means over tasks and seeds, where they are known."""
    found: dict[str, list[float]] = {}
    for kept, target_range in zip(run.raw.samples, run.raw.target_range, strict=True):
        rmse, *others = (np.array(kept.get(key, []), dtype=float) for key in ("rmse", *SCALES))
        if any(len(values) != len(rmse) for values in others):
            continue
        std, rms, count = (np.where(values > 0, values, math.nan) for values in others)
        target_range = target_range if target_range > 0 else math.nan
        with np.errstate(over="ignore", divide="ignore"):
            each = {
                "held-out RMSE / range": rmse / target_range,
                "held-out RMSE / standard deviation of the task": rmse / std,
                "held-out MSE / range²": (rmse / target_range) ** 2,
                "held-out RMSE / number of test ratings": rmse / count,
                "held-out RMSE / Euclidean norm of the test ratings": rmse / (rms * np.sqrt(count)),
            }
        if "rmse_in_sample" in kept:
            each["RMSE on the shots themselves / range"] = np.array(kept["rmse_in_sample"]) / target_range
        for name, values in each.items():
            found.setdefault(name, []).append(mean(values))
    return {name: mean(values) for name, values in found.items()}
