"""Meta-training: contests of all methods on the same tasks."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.analysis.arithmetic import mean, spread
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
ASKED = {"shots": int, "queries": int, "test_steps": int, "outer_updates": int, "normaliser": str}  # of every contest


@dataclass(frozen=True)
class Run:
    """One method's trainings on one problem, a seed each.

    Attributes:
        name: the method and what distinguishes it here.
        target: what its gradient estimates; "guess" where nothing is trained.
        nrmse: seed -> of each test task; empty where it diverged or kept no errors.
        in_sample: seed -> of each test task on the shots themselves, over the same scale.
        failed: seed -> (status, reason); of what was ok and kept no errors "no errors" is the status.
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
        return {seed: mean(errors) for seed, errors in self.nrmse.items()}

    def std(self, seeds: Collection[int]) -> float:
        """The standard deviation of the nRMSE over test tasks, a mean over these seeds."""
        by_seed = {seed: spread(errors) for seed, errors in self.nrmse.items()}
        return float(np.mean([by_seed.get(seed, math.nan) for seed in seeds])) if seeds else math.nan

    def best_look(self, seeds: Collection[int]) -> float:
        """The mean nRMSE over these seeds, had each training stopped at its best look; NaN where it lacks one.

        Those looks are at the test tasks: what a stopping rule could gain at most, not what one does gain.
        """
        lowest = {seed: float(nrmse.min()) for seed, (_, _, nrmse) in self.learning.items()}
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
    """The contests of all training sweeps, by study, then problem, shots and steps.

    What was not asked as a contest is (see ``ASKED``) is none.
    """
    rows = frame[frame.study.str.startswith(TRAINING) & (frame.probe == "quality")]
    rows = rows.assign(asked=[json.loads(options) for options in rows.problem_options])
    rows = rows[[all(isinstance(asked.get(key), kind) for key, kind in ASKED.items()) for asked in rows.asked]]
    if rows.empty:
        return []
    most = max(asked["outer_updates"] for asked in rows.asked)
    found = []
    for (problem, _), group in rows.groupby(["problem", "setting"]):
        asked = group.asked.iloc[0]
        named = _by_name(group, asked["test_steps"])
        order = paper_first(sorted(named, key=lambda name: (_target(named[name]) == GUESS, name)))
        runs = {name: _run(name, named[name], asked["normaliser"]) for name in order}
        placed = (asked[key] for key in ASKED)
        found.append(Contest(group.study.iloc[0], problem, *placed, _variant(asked, problem, most), runs))
    return sorted(found, key=lambda c: (c.is_rating, c.problem, c.variant != "", c.variant, c.shots, c.test_steps))


def _by_name(group: pd.DataFrame, test_steps: int) -> dict[str, pd.DataFrame]:
    """The rows of each method; where two differ in an option without a place in the name it is told there."""
    named: dict[str, pd.DataFrame] = {}
    columns = (group[column] for column in ("method", "variant", "forward", "backward", "inner_steps"))
    names = pd.Series([_name(*row, test_steps) for row in zip(*columns, strict=True)], index=group.index)
    for name, rows in group.groupby(names):
        kinds = list(rows.groupby(["options", "where"]))
        options = [json.loads(asked) for (asked, _), _ in kinds]
        for one, ((_, where), mine) in zip(options, kinds, strict=True):
            odd = [f"{k}={plain(one.get(k))}" for k in one if len({plain(o.get(k)) for o in options}) > 1]
            odd += [where] * (rows["where"].nunique() > 1)
            told = f"{name} [{', '.join(odd)}]" if len(kinds) > 1 else str(name)
            named[told] = mine.sort_values("started_at").drop_duplicates("seed", keep="last")
    return named


def _name(method: str, variant: str, forward: str, backward: str, inner_steps: int, test_steps: int) -> str:
    name = f"{method} {variant}" if variant else method
    if method == OURS and backward != "discrete":  # the same target by other means
        name = f"{name} ({forward}, {backward})"
    if inner_steps == test_steps:
        return f"{name} (all steps)" if method == "maml" else name
    if inner_steps * 10 == test_steps:
        return f"{name} (1/10 of the steps)"
    return f"{name} ({inner_steps} step{'s' if inner_steps > 1 else ''})"


def _target(rows: pd.DataFrame) -> str:
    return max(rows.target)  # a row without an answer has none


def _variant(asked: Mapping[str, Any], problem: str, most: int) -> str:
    usual = USUAL | (REGRESSION if problem.endswith(REGRESSED) else RATINGS) | {"outer_updates": most}
    told = {key: plain(value) for key, value in asked.items() if key in usual and value != usual[key]}
    return ", ".join(f"{key}={value}" for key, value in sorted(told.items()))


def _run(name: str, rows: pd.DataFrame, normaliser: str) -> Run:
    rows = rows.sort_values("seed")
    nrmse, in_sample, failed, learning, curves = {}, {}, {}, {}, []
    columns = (rows.seed, rows.status, rows.reason, rows.samples, rows.target_range)
    for seed, status, reason, samples, target_range in zip(*columns, strict=True):
        scale = _scale(samples, target_range, normaliser)
        errors = _scaled(samples.get("rmse", []), scale)
        if status != "ok" or errors is None:
            failed[seed] = (status if status != "ok" else "no errors", reason)
            continue
        nrmse[seed] = errors
        if (shots := _scaled(samples.get("rmse_in_sample", []), scale)) is not None:
            in_sample[seed] = shots
        if looks := _columns(samples, "learning_updates", "learning_seconds", "learning_nrmse"):
            learning[seed] = looks
        if curve := _columns(samples, "curve_steps", "curve_nrmse", "curve_std"):
            curves.append(curve)
    alike = [curve for curve in curves if np.array_equal(curve[0], curves[0][0])]
    steps, errors, stds = (np.mean(each, 0) for each in zip(*alike, strict=True)) if alike else [np.empty(0)] * 3
    fine = rows[rows.seed.isin(nrmse.keys())]
    memory = fine.peak_allocated_bytes.mean()
    return Run(name, _target(rows), nrmse, in_sample, failed, (steps, errors, stds), learning, memory, fine)


def _scale(samples: Mapping[str, Sequence[float]], target_range: float, normaliser: str) -> np.ndarray:
    """What the errors of all tasks or of each are divided by; NaN where that is not positive."""
    scale = np.array(target_range if normaliser == "range" else samples.get("target_std", []), dtype=float)
    return np.where(scale > 0, scale, math.nan)


def _scaled(values: Sequence[float], scale: np.ndarray) -> np.ndarray | None:
    """Errors over their scale, NaN beyond all floats; None where none is known."""
    if scale.ndim and len(scale) != len(values):
        return None
    with np.errstate(over="ignore"):
        found = np.array(values, dtype=float) / scale
    found[~np.isfinite(found)] = math.nan
    return None if np.isnan(found).all() else found


def _columns(samples: Mapping[str, Sequence[float]], *names: str) -> tuple[np.ndarray, ...]:
    """Samples that belong together, by the first of them; empty where one is missing or has another length."""
    columns = [np.array(samples.get(name, []), dtype=float) for name in names]
    if not columns[0].size or len({column.size for column in columns}) > 1:
        return ()
    _, first = np.unique(columns[0], return_index=True)
    return tuple(column[first] for column in columns)
