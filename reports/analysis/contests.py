"""Meta-training: contests of all methods on the same tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

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
    def is_rating(self) -> bool:
        """Whether users' ratings are predicted, and not functions."""
        return not self.problem.endswith(REGRESSED)

    @property
    def trained(self) -> list[Run]:
        """Without guesses and what diverged."""
        return [run for run in self.runs.values() if run.target != GUESS and run.nrmse]

    @property
    def guesses(self) -> list[Run]:
        """What needs no training."""
        return [run for run in self.runs.values() if run.target == GUESS and run.nrmse]

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


def paper_first(names: Iterable[str]) -> list[str]:
    """Each name once, those of the paper's methods first and in its order."""
    names = dict.fromkeys(names)
    return [*(name for name in PAPER if name in names), *(name for name in names if name not in PAPER)]


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
        order = paper_first(sorted(named, key=lambda name: (_target(named[name]) == GUESS, name)))
        runs = {name: _run(name, named[name], asked["normaliser"]) for name in order}
        placed = (asked[key] for key in ("shots", "queries", "test_steps", "outer_updates", "normaliser"))
        found.append(Contest(group.study.iloc[0], problem, *placed, _variant(asked, problem, most), runs))
    return sorted(found, key=lambda c: (c.is_rating, c.problem, c.variant != "", c.variant, c.shots, c.test_steps))


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
