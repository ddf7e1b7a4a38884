"""The problems that methods are measured on, and the one registry of them."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import Any

from amaml_core import InputError
from bench.problems.base import BenchProblem
from bench.problems.closed_form import ClosedForm
from bench.problems.custom import Custom
from bench.problems.images import SyntheticImages
from bench.problems.networks import Networks
from bench.problems.ratings import Jester, MovieLens1M, MovieLens100K
from bench.problems.regression import Alpine, AlpineTraining, CosMixture, CosMixtureTraining

PROBLEMS: dict[str, type[BenchProblem]] = {
    "alpine": Alpine,
    "alpine_training": AlpineTraining,
    "closed_form": ClosedForm,
    "cosmixture": CosMixture,
    "cosmixture_training": CosMixtureTraining,
    "custom": Custom,
    "jester": Jester,
    "movielens_100k": MovieLens100K,
    "movielens_1m": MovieLens1M,
    "networks": Networks,
    "synthetic_images": SyntheticImages,
}


def make_problem(name: str, options: dict[str, Any]) -> BenchProblem:
    """The problem of this name with these options.

    Raises:
        InputError: the name or an option is unknown or missing, or a value is out of range.
    """
    if name not in PROBLEMS:
        raise InputError(f"Unknown problem {name!r}; choose one of {', '.join(PROBLEMS)}.")
    known = {field.name: field for field in fields(PROBLEMS[name])}
    for option in options:
        if option not in known:
            raise InputError(f"Problem {name} has no option {option!r}; it has {', '.join(known)}.")
    for option, field in known.items():
        if option not in options and field.default is MISSING:
            raise InputError(f"Problem {name} needs the option {option!r}.")
    return PROBLEMS[name](**options)


def resolved_options(problem: BenchProblem) -> dict[str, Any]:
    """Every option of a problem, defaults written out."""
    return asdict(problem)
