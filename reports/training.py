"""What initialisations are worth: contests of all methods on the same tasks, and the verdicts. Nothing is formatted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

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


@dataclass(frozen=True)
class Run:
    """One method's trainings on one problem, a seed each.

    Attributes:
        name: the method and what distinguishes it here.
        target: what its gradient estimates; "guess" where nothing is trained.
        nrmse: seed -> of each test task; empty where it diverged.
        in_sample: seed -> of each test task on the shots themselves, over the same scale.
        failed: seed -> (status, reason).
        curve: inner steps and the mean nRMSE after them, over tasks and seeds.
        learning: outer updates, seconds and the mean nRMSE after adaptation: arrays ``[seeds, looks]`` each.
        bytes: peak memory of one outer update, NaN where it was not measured.
        raw: the rows of the table behind it, a seed each.
    """

    name: str
    target: str
    nrmse: Mapping[int, np.ndarray]
    in_sample: Mapping[int, np.ndarray]
    failed: Mapping[int, tuple[str, str]]
    curve: tuple[np.ndarray, np.ndarray]
    learning: tuple[np.ndarray, np.ndarray, np.ndarray]
    bytes: float
    raw: pd.DataFrame

    @property
    def mean(self) -> float:
        """The mean nRMSE over tasks and seeds."""
        return float(np.mean(list(self.by_seed.values()))) if self.nrmse else math.nan

    @property
    def by_seed(self) -> dict[int, float]:
        """The mean nRMSE over the tasks of each seed."""
        return {seed: float(np.nanmean(errors)) for seed, errors in self.nrmse.items()}

    @property
    def std(self) -> float:
        """The standard deviation of the nRMSE over test tasks, a mean over seeds."""
        return float(np.mean([np.nanstd(errors, ddof=1) for errors in self.nrmse.values()])) if self.nrmse else math.nan

    @property
    def seconds(self) -> float:
        """Of all outer updates, a mean over seeds; NaN for a guess."""
        return float(self.learning[1][:, -1].mean()) if self.learning[1].size else math.nan


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
        variant: the problem's other options where they are not the usual ones, as key=value.
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
        name = self.problem.removesuffix("_training")
        return ", ".join(filter(None, [f"{name} {self.shots}shot-{self.queries}val", self.variant]))

    @property
    def trained(self) -> list[Run]:
        """Without guesses and what diverged."""
        return [run for run in self.runs.values() if run.target != GUESS and run.nrmse]

    @property
    def rivals(self) -> list[Run]:
        """The paper's methods, what diverged left out."""
        return [self.runs[name] for name in PAPER if name in self.runs and self.runs[name].nrmse]


def contests(frame: pd.DataFrame) -> list[Contest]:
    """The contests of all training sweeps, by study, then problem, shots and steps."""
    rows = frame[frame.study.str.startswith(TRAINING) & (frame.probe == "quality")]
    if rows.empty:
        return []
    rows = rows.assign(asked=rows.problem_options.map(json.loads))
    found = []
    for (study, problem, _), group in rows.groupby(["study", "problem", "setting"]):
        asked = group.asked.iloc[0]
        named = dict(list(group.groupby(group.apply(_name, axis=1, test_steps=asked["test_steps"]))))
        order = [*PAPER, *sorted(set(named) - set(PAPER), key=lambda name: (_target(named[name]) == GUESS, name))]
        runs = {name: _run(name, named[name], asked["normaliser"]) for name in order if name in named}
        variant = _variant(asked, _usual(rows[(rows.study == study) & (rows.problem == problem)].asked))
        placed = (asked[key] for key in ("shots", "queries", "test_steps", "outer_updates", "normaliser"))
        found.append(Contest(study, problem, *placed, variant, runs))
    return sorted(found, key=lambda c: (c.study, c.problem, c.variant != "", c.variant, c.shots, c.test_steps))


def _name(row: pd.Series, test_steps: int) -> str:
    name = f"{row.method} {row.variant}" if row.variant else row.method
    if row.method == OURS and row.forward == "dopri5":  # the paper's own scheme, beside ours with the same target
        name = f"{name} (dopri5, {row.backward})"
    if row.inner_steps == test_steps:
        return f"{name} (all steps)" if row.method == "maml" else name
    if row.inner_steps * 10 == test_steps:
        return f"{name} (1/10 of the steps)"
    return f"{name} ({row.inner_steps} step{'s' if row.inner_steps > 1 else ''})"


def _target(rows: pd.DataFrame) -> str:
    return max(rows.target)  # a row without an answer has none


def _usual(asked: pd.Series) -> dict[str, str]:
    counted = {key: pd.Series([plain(one.get(key)) for one in asked]).mode() for key in asked.iloc[0]}
    return {key: values.iloc[0] for key, values in counted.items()}


def _variant(asked: Mapping[str, Any], usual: Mapping[str, str]) -> str:
    odd = {k: plain(v) for k, v in asked.items() if k not in PLACED and plain(v) != usual.get(k)}
    return ", ".join(f"{key}={value}" for key, value in sorted(odd.items()))


def _run(name: str, rows: pd.DataFrame, normaliser: str) -> Run:
    rows = rows.sort_values("seed")
    fine = rows[rows.status == "ok"]
    scaled = {row.seed: _scale(row, normaliser) for row in fine.itertuples()}
    learning = [
        np.array([samples[key] for samples in fine.samples])
        if _target(rows) != GUESS and len(fine)
        else np.empty((0, 0))
        for key in ("learning_updates", "learning_seconds", "learning_nrmse")
    ]
    curve = (np.empty(0), np.empty(0))
    if _target(rows) != GUESS and len(fine):
        curve = (
            np.array(fine.samples.iloc[0]["curve_steps"]),
            np.mean([samples["curve_nrmse"] for samples in fine.samples], 0),
        )
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
        (learning[0], learning[1], learning[2]),
        fine.peak_allocated_bytes.mean(),
        fine,
    )


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
            the duels that it was made with.
    """

    difference: float
    wins: float
    p: float


def duels(mine: Run, others: Sequence[Run]) -> dict[str, Duel]:
    """One run against others: name -> duel. Those without a shared seed are left out."""
    made: dict[str, tuple[float, float, float]] = {}
    for other in others:
        seeds = sorted(mine.nrmse.keys() & other.nrmse.keys())
        if seeds and other is not mine:
            gap = np.concatenate([mine.nrmse[seed] - other.nrmse[seed] for seed in seeds])
            gap = gap[~np.isnan(gap)]
            p = float(wilcoxon(gap).pvalue) if np.any(gap) else 1.0
            made[other.name] = float(gap.mean()), float((gap < 0).mean()), p
    adjusted = holm([p for *_, p in made.values()])
    return {name: Duel(gap, wins, p) for (name, (gap, wins, _)), p in zip(made.items(), adjusted, strict=True)}


@dataclass(frozen=True)
class Verdict:
    """On "A-MAML is best" in one contest, among the paper's methods.

    Attributes:
        best: the name with the lowest mean nRMSE.
        ours: whether that is A-MAML.
        clear: whether A-MAML is lower than every other with p < ``LEVEL``.
        beaten_by: names that are lower than A-MAML with p < ``LEVEL``.
        seeds: in how many of the seeds A-MAML is the lowest.
        of_seeds: seeds that all of them have.
    """

    best: str
    ours: bool
    clear: bool
    beaten_by: tuple[str, ...]
    seeds: int
    of_seeds: int


def verdict(contest: Contest) -> Verdict | None:
    """None where A-MAML or all others are missing."""
    rivals = contest.rivals
    mine = next((run for run in rivals if run.name == OURS), None)
    if mine is None or len(rivals) < 2:
        return None
    fought = duels(mine, rivals)
    best = min(rivals, key=lambda run: run.mean)
    seeds = sorted(set.intersection(*(set(run.nrmse) for run in rivals)))
    first = [min(rivals, key=lambda run, seed=seed: run.by_seed[seed]).name for seed in seeds]
    return Verdict(
        best.name,
        best is mine,
        all(duel.difference < 0 and duel.p < LEVEL for duel in fought.values()),
        tuple(name for name, duel in fought.items() if duel.difference > 0 and duel.p < LEVEL),
        first.count(OURS),
        len(seeds),
    )


def reached(run: Run, seconds: float) -> float:
    """The mean nRMSE after adaptation that a training of so many seconds would reach, between two looks linearly.

    A training that was over before is as good as it was then; NaN for a guess.
    """
    _, spent, errors = run.learning
    return (
        float(np.mean([np.interp(seconds, *pair) for pair in zip(spent, errors, strict=True)]))
        if len(spent)
        else math.nan
    )


def best_within(contest: Contest, seconds: float = math.inf, size: float = math.inf) -> tuple[Run, float] | None:
    """The trained run with the lowest nRMSE within a budget of time and of memory a training has, and that nRMSE.

    A run whose memory was not measured fits no bound on it.
    """
    able = [run for run in contest.trained if size == math.inf or run.bytes <= size]
    priced = [(reached(run, seconds), run) for run in able]
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
