"""What initialisations are worth: contests of all methods on the same tasks, and the verdicts. Nothing is formatted."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, wilcoxon

from bench.stats import holm
from reports.load import TRAINING, plain

GUESS = "guess"  # the target of what is not trained
OURS = "amaml"
PAPER = {  # the rows of the paper, in its order: name -> label there
    "amaml": "A-MAML",
    "imaml paper-gd": "iMAML-GD",
    "imaml paper-hf": "iMAML-HF",
    "maml (1/10 of the steps)": "MAML",
    "maml (1 step)": "MAML-1",
    "fomaml": "FOMAML",
    "reptile": "Reptile",
}
LEVEL = 0.05  # of significance, as in the paper
PLACED = ("shots", "queries", "test_steps", "outer_updates", "samples")  # options told by place, not as key=value
USUAL = {  # the protocol; what departs from it is another contest
    "tasks": 5,
    "outer_lr": 1e-3,
    "test_tasks": 100,
    "train_tasks": 100,
    "test_queries": 100,
    "items": 100,
    "min_ratings": 20,
    "depth": 2,
    "standardise": False,
    "half": False,
    "leak": False,
}
REGRESSION, RATINGS = {"normaliser": "task-std", "width": 32}, {"normaliser": "range", "width": 40}
REGRESSED = "_training"  # how the names end of problems of regression


@dataclass(frozen=True)
class Run:
    """One method's trainings on one problem, a seed each.

    Attributes:
        name: the method and what distinguishes it here.
        target: what its gradient estimates; "guess" where nothing is trained.
        nrmse: seed -> of each test task; empty where it diverged.
        in_sample: seed -> of each test task on the shots themselves, over the same scale.
        failed: seed -> (status, reason).
        curve: inner steps, the mean nRMSE after them over tasks and seeds, and its standard deviation over tasks.
        learning: seed -> outer updates, seconds and the mean nRMSE after adaptation, an array of looks each.
        bytes: peak memory of one outer update, NaN where it was not measured.
        raw: the rows of the table behind it, a seed each.
    """

    name: str
    target: str
    nrmse: Mapping[int, np.ndarray]
    in_sample: Mapping[int, np.ndarray]
    failed: Mapping[int, tuple[str, str]]
    curve: tuple[np.ndarray, np.ndarray, np.ndarray]
    learning: Mapping[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
    bytes: float
    raw: pd.DataFrame

    def mean(self, seeds: Collection[int]) -> float:
        """The mean nRMSE over the tasks of these seeds; NaN where it lacks one: each seed has test tasks of its own."""
        by_seed = self.by_seed
        return float(np.mean([by_seed.get(seed, math.nan) for seed in seeds])) if seeds else math.nan

    @property
    def by_seed(self) -> dict[int, float]:
        """The mean nRMSE over the tasks of each seed."""
        return {seed: float(np.nanmean(errors)) for seed, errors in self.nrmse.items()}

    def std(self, seeds: Collection[int]) -> float:
        """The standard deviation of the nRMSE over test tasks, a mean over these seeds."""
        spread = {seed: float(np.nanstd(errors, ddof=1)) for seed, errors in self.nrmse.items()}
        return float(np.mean([spread.get(seed, math.nan) for seed in seeds])) if seeds else math.nan

    def best_look(self, seeds: Collection[int]) -> float:
        """The mean nRMSE over these seeds, had each training stopped at its best look; NaN where it lacks one.

        Those looks are at the test tasks: what a stopping rule could gain at most, not what one does gain.
        """
        lowest = {seed: float(nrmse.min()) for seed, (_, _, nrmse) in self.learning.items() if len(nrmse)}
        return float(np.mean([lowest.get(seed, math.nan) for seed in seeds])) if seeds else math.nan

    @property
    def seconds(self) -> float:
        """Of all outer updates, a mean over seeds; NaN for a guess."""
        return float(np.mean([spent[-1] for _, spent, _ in self.learning.values()])) if self.learning else math.nan


@dataclass(frozen=True)
class Contest:
    """All methods on one problem under the same protocol.

    Attributes:
        study: the sweep.
        problem: its name.
        shots: support examples.
        queries: query examples in training.
        test_steps: gradient steps of the meta-test.
        outer_updates: G.
        normaliser: what the errors are divided by: "range" or "task-std".
        variant: what departs from the protocol, as key=value.
        runs: by name; the methods of the paper in its order, then others, then guesses.
    """

    study: str
    problem: str
    shots: int
    queries: int
    test_steps: int
    outer_updates: int
    normaliser: str
    variant: str
    runs: dict[str, Run]

    @property
    def title(self) -> str:
        """Of the column that it is."""
        name = self.problem.removesuffix(REGRESSED)
        return ", ".join(filter(None, [f"{name} {self.shots}shot-{self.queries}val", self.variant]))

    @property
    def trained(self) -> list[Run]:
        """Without guesses and what diverged."""
        return [run for run in self.runs.values() if run.target != GUESS and run.nrmse]

    @property
    def rivals(self) -> list[Run]:
        """The paper's methods, what diverged in every seed left out."""
        return [self.runs[name] for name in PAPER if name in self.runs and self.runs[name].nrmse]

    @property
    def seeds(self) -> list[int]:
        """Those that all of the paper's methods have (all runs, where none of the paper's is here)."""
        runs = self.rivals or [run for run in self.runs.values() if run.nrmse]
        return sorted(set.intersection(*(set(run.nrmse) for run in runs))) if runs else []

    @property
    def comparable(self) -> list[Run]:
        """Trained runs that have all of ``seeds``: others were tested on other tasks."""
        return [run for run in self.trained if set(self.seeds) <= run.nrmse.keys()]


def contests(frame: pd.DataFrame) -> list[Contest]:
    """The contests of all training sweeps, by study, then problem, shots and steps."""
    rows = frame[frame.study.str.startswith(TRAINING) & (frame.probe == "quality")]
    if rows.empty:
        return []
    rows = rows.assign(asked=rows.problem_options.map(json.loads))
    most = max(asked["outer_updates"] for asked in rows.asked)
    found = []
    for (problem, _), group in rows.groupby(["problem", "setting"]):
        asked = group.asked.iloc[0]
        named = _by_name(group, asked["test_steps"])
        order = [*PAPER, *sorted(set(named) - set(PAPER), key=lambda name: (_target(named[name]) == GUESS, name))]
        runs = {name: _run(name, named[name], asked["normaliser"]) for name in order if name in named}
        placed = (asked[key] for key in ("shots", "queries", "test_steps", "outer_updates", "normaliser"))
        found.append(Contest(group.study.iloc[0], problem, *placed, _variant(asked, problem, most), runs))
    return sorted(found, key=lambda c: (is_rating(c), c.problem, c.variant != "", c.variant, c.shots, c.test_steps))


def is_rating(contest: Contest) -> bool:
    """Whether users' ratings are predicted, and not functions."""
    return not contest.problem.endswith(REGRESSED)


def _by_name(group: pd.DataFrame, test_steps: int) -> dict[str, pd.DataFrame]:
    """The rows of each method; where two differ in an option without a place in the name it is told there."""
    named: dict[str, pd.DataFrame] = {}
    for name, rows in group.groupby(group.apply(_name, axis=1, test_steps=test_steps)):
        kinds = list(rows.groupby(["options", "where"]))
        options = [json.loads(asked) for (asked, _), _ in kinds]
        for one, ((_, where), mine) in zip(options, kinds, strict=True):
            odd = [f"{k}={plain(one.get(k))}" for k in one if len({plain(o.get(k)) for o in options}) > 1]
            odd += [where] * (rows["where"].nunique() > 1)
            told = f"{name} [{', '.join(odd)}]" if len(kinds) > 1 else str(name)
            named[told] = mine.sort_values("started_at").drop_duplicates("seed", keep="last")
    return named


def _name(row: pd.Series, test_steps: int) -> str:
    name = f"{row.method} {row.variant}" if row.variant else row.method
    if row.method == OURS and row.backward != "discrete":  # the same target by other means
        name = f"{name} ({row.forward}, {row.backward})"
    if row.inner_steps == test_steps:
        return f"{name} (all steps)" if row.method == "maml" else name
    if row.inner_steps * 10 == test_steps:
        return f"{name} (1/10 of the steps)"
    return f"{name} ({row.inner_steps} step{'s' if row.inner_steps > 1 else ''})"


def _target(rows: pd.DataFrame) -> str:
    return max(rows.target)  # a row without an answer has none


def _variant(asked: Mapping[str, Any], problem: str, most: int) -> str:
    usual = USUAL | (REGRESSION if problem.endswith(REGRESSED) else RATINGS) | {"outer_updates": most}
    told = {key: plain(value) for key, value in asked.items() if key in usual and value != usual[key]}
    return ", ".join(f"{key}={value}" for key, value in sorted(told.items()))


def _run(name: str, rows: pd.DataFrame, normaliser: str) -> Run:
    rows = rows.sort_values("seed")
    fine = rows[rows.status == "ok"]
    scaled = {row.seed: _scale(row, normaliser) for row in fine.itertuples()}
    learnt = [row for row in fine.itertuples() if row.samples.get("learning_nrmse")]
    curved = [samples for samples in fine.samples if samples.get("curve_nrmse") and samples.get("curve_std")]
    curve = (np.empty(0), np.empty(0), np.empty(0))
    if curved:
        mean, std = (np.mean([samples[key] for samples in curved], 0) for key in ("curve_nrmse", "curve_std"))
        curve = (np.array(curved[0]["curve_steps"]), mean, std)
    return Run(
        name,
        _target(rows),
        {row.seed: np.array(row.samples["rmse"]) / scaled[row.seed] for row in fine.itertuples()},
        {
            row.seed: np.array(row.samples["rmse_in_sample"]) / scaled[row.seed]
            for row in fine.itertuples()
            if "rmse_in_sample" in row.samples
        },
        {row.seed: (row.status, row.reason) for row in rows[rows.status != "ok"].itertuples()},
        curve,
        {row.seed: _learning(row.samples) for row in learnt},
        fine.peak_allocated_bytes.mean(),
        fine,
    )


def _learning(samples: Mapping[str, Sequence[float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    updates, seconds, nrmse = (np.array(samples[f"learning_{key}"]) for key in ("updates", "seconds", "nrmse"))
    return updates, seconds, nrmse


def _scale(row: Any, normaliser: str) -> np.ndarray:
    """What the errors of each task are divided by; NaN where that is zero."""
    if normaliser == "range":
        return np.full(len(row.samples["rmse"]), row.target_range)
    spread = np.array(row.samples["target_std"])
    return np.where(spread > 0, spread, math.nan)


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
    """One run against others: name -> duel. Those without a shared seed are left out."""
    made: dict[str, Duel] = {}
    for other in others:
        seeds = sorted(mine.nrmse.keys() & other.nrmse.keys())
        if seeds and other is not mine:
            gap = np.concatenate([mine.nrmse[seed] - other.nrmse[seed] for seed in seeds])
            gap = gap[~np.isnan(gap)]
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
    """What one may have divided by what instead, and called nRMSE; means over tasks and seeds."""
    found: dict[str, list[float]] = {}
    for row in run.raw.itertuples():
        samples = {key: np.array(values) for key, values in row.samples.items()}
        rmse, count, spread = samples["rmse"], samples["query_count"], row.target_range
        each = {
            "held-out RMSE / range": rmse / spread,
            "held-out RMSE / standard deviation of the task": rmse
            / np.where(samples["target_std"] > 0, samples["target_std"], math.nan),
            "held-out MSE / range²": (rmse / spread) ** 2,
            "held-out RMSE / number of test ratings": rmse / count,
            "held-out RMSE / Euclidean norm of the test ratings": rmse / (samples["target_rms"] * np.sqrt(count)),
        }
        if "rmse_in_sample" in samples:
            each["RMSE on the shots themselves / range"] = samples["rmse_in_sample"] / spread
        for name, values in each.items():
            found.setdefault(name, []).append(float(np.nanmean(values)))
    return {name: float(np.mean(values)) for name, values in found.items()}
