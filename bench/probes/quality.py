"""What an initialisation is worth: meta-training by a method, then the error on test tasks while they adapt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import amaml_core as am
from amaml_core.engine import inductor
from bench.probes import allocator
from bench.probes.base import Measurement
from bench.problems.base import BenchProblem
from bench.problems.training import Arena, TrainingProblem
from bench.records import Cell

LOOKS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # shares of the updates, after which it is tested
POINTS = 40  # of the adaptation curve, about
BINS = 50  # of the training loss
DIGITS = 5  # of a sample: a record holds some hundreds
CHECKPOINT_EVERY = 250  # outer updates
TELL_S = 1.0  # between two words of progress


def measure(
    problem: BenchProblem,
    cell: Cell,
    directory: Path | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement:
    """Meta-train, then test: nRMSE of each test task, and how it falls with outer updates and with inner steps.

    The seconds and the peak memory of training come along, so that methods can be compared at equal cost.

    Args:
        problem: one to train on.
        cell: the method and its options; the seed draws tasks, initialisation and batches, alike for all methods.
        directory: of the checkpoints, from which an interrupted training goes on; None keeps none.
        tell: hears how many of the outer updates are made.
    """
    if not isinstance(problem, TrainingProblem):
        raise am.InputError(f"{cell.problem} has no tasks to train on; choose a problem made for training.")
    arena = problem.arena(cell.seed, getattr(torch, cell.dtype), cell.device)
    result = Measurement(metrics={f"{name}_tasks": count for name, count in arena.counts.items()})
    scale = _scale(problem, arena)
    result.metrics["excluded_tasks"] = int((scale <= 0).sum())
    if arena.target_range is not None:
        result.metrics["target_range"] = arena.target_range
    result.samples = {
        "target_std": _listed(_target_std(arena)),
        "target_rms": _listed(_rmse(arena, torch.zeros_like(arena.test.query_y))),
        "query_count": _listed(_query_count(arena)),
    }
    if cell.method in problem.guesses:
        errors = _rmse(arena, arena.guesses[cell.method])
        result.samples["rmse"] = _listed(errors)
        result.metrics["nrmse"] = float(_mean(am.nrmse(errors, scale).unsqueeze(1)))
    else:
        _train_and_test(problem, cell, arena, scale, directory, tell, result)
    return result


def _train_and_test(
    problem: TrainingProblem,
    cell: Cell,
    arena: Arena,
    scale: Tensor,
    directory: Path | None,
    tell: Callable[[int, int], None],
    result: Measurement,
) -> None:
    spoken = time.monotonic()

    def on_update(made: int, loss: float) -> None:
        nonlocal spoken
        if time.monotonic() - spoken > TELL_S:
            spoken = time.monotonic()
            tell(made, problem.outer_updates)

    method = am.create_method(cell.method, **cell.options)
    learner = arena.problem.with_engine("compiled" if cell.engine == "compiled" else "eager")
    update = partial(method.meta_gradient, learner, arena.theta, arena.batch(0))
    update()  # what is compiled is compiled here: that is no part of the time that training takes
    result.metrics |= allocator.peaks(update, cell.device)
    if cell.engine == "compiled":
        result.metrics["compile_seconds"] = inductor.seconds
    trained = am.train(
        method,
        learner,
        arena.batch,
        updates=problem.outer_updates,
        meta=arena.theta,
        optimizer=partial(torch.optim.Adam, lr=problem.outer_lr),
        snapshots={round(share * problem.outer_updates) for share in LOOKS},
        directory=directory,
        every=CHECKPOINT_EVERY,
        on_update=on_update,
    )
    result.judge([trained.status])
    if trained.not_converged:
        result.metrics["not_converged_tasks"] = trained.not_converged
    began = time.perf_counter()
    curves = {made: _curve(problem, cell, arena, meta["theta"]) for made, meta in trained.snapshots.items()}
    if trained.updates not in curves:  # it ended before its time: the last good θ is what a user has
        curves[trained.updates] = _curve(problem, cell, arena, trained.theta)
    final = curves[trained.updates]
    elapsed = np.concatenate([[0.0], np.cumsum(trained.seconds.numpy())])
    nrmse = {made: am.nrmse(curve.errors, scale.unsqueeze(1)) for made, curve in curves.items()}
    # a start from which a test task diverges has no place on the curve
    looks = [made for made in sorted(nrmse) if np.isfinite(float(_mean(nrmse[made])[-1]))]
    result.metrics |= {
        "outer_updates": trained.updates,
        "train_seconds": float(elapsed[-1]),
        "test_seconds": time.perf_counter() - began,
    }
    if np.isfinite(reached := float(_mean(nrmse[trained.updates])[-1])):
        result.metrics["nrmse"] = reached
    elif result.status == "ok":
        result.status, result.reason = "diverged", "Test tasks left the finite range; lower inner_lr or test_steps."
    support = arena.problem.predict(final.adapted, arena.test.support_x).detach()
    result.samples |= {
        "rmse": _listed(final.errors[:, -1]),
        "rmse_in_sample": _listed(arena.unit * am.rmse(support, arena.test.support_y)),
        "curve_steps": list(map(float, final.steps)),
        "curve_nrmse": _listed(_mean(nrmse[trained.updates])),
        "curve_std": _listed(_std(nrmse[trained.updates])),
        "learning_updates": list(map(float, looks)),
        "learning_nrmse": _listed(_mean(nrmse[made])[-1] for made in looks),
        "learning_seconds": _listed(elapsed[made] for made in looks),
        "train_loss": _listed(part.mean() for part in np.array_split(trained.losses.numpy(), BINS) if len(part)),
    }
    result.reason = " ".join(filter(None, [result.reason, *trained.notes]))


def _curve(problem: TrainingProblem, cell: Cell, arena: Arena, theta: Tensor) -> am.AdaptationCurve:
    steps = np.unique(np.rint(np.concatenate([[1, 2, 5, 10], np.linspace(0, problem.test_steps, POINTS + 1)])))
    curve = am.adaptation_curve(
        arena.problem.with_engine("eager"),
        theta,
        arena.test,
        inner_lr=cell.options["inner_lr"],
        steps=[int(step) for step in steps if step <= problem.test_steps],
        query_mask=arena.query_mask,
    )
    return am.AdaptationCurve(curve.steps, arena.unit * curve.errors.double().cpu(), curve.adapted)


def _scale(problem: TrainingProblem, arena: Arena) -> Tensor:
    """What each test task's error is divided by, ``[B]``, in the data's own unit."""
    if problem.normaliser == "range":
        assert arena.target_range is not None
        return torch.full((len(arena.test),), arena.target_range, dtype=torch.float64)
    return _target_std(arena)


def _target_std(arena: Arena) -> Tensor:
    return arena.unit * am.target_std(arena.test.query_y, arena.query_mask).double().cpu()


def _rmse(arena: Arena, guess: Tensor) -> Tensor:
    return arena.unit * am.rmse(guess, arena.test.query_y, arena.query_mask).double().cpu()


def _query_count(arena: Arena) -> Tensor:
    if arena.query_mask is None:
        return torch.full((len(arena.test),), arena.test.query_y.shape[1])
    return arena.query_mask.sum(1).cpu()


def _mean(errors: Tensor) -> Tensor:
    """Over the tasks that have an error, ``[S]``."""
    return errors[~torch.isnan(errors).all(1)].mean(0)


def _std(errors: Tensor) -> Tensor:
    return errors[~torch.isnan(errors).all(1)].std(0)


def _listed(values: Tensor | Iterable[Any]) -> list[float]:
    return [float(f"{float(value):.{DIGITS}g}") for value in values]
