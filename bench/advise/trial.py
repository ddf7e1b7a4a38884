"""``amaml-bench train FILE.py:NAME``: a user's own problem, meta-trained by every method under one budget."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from scipy.stats import ttest_rel
from torch import Tensor

import amaml_core as am
from bench.problems.custom import Custom

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("maml", {}),
    ("fomaml", {}),
    ("reptile", {}),
    ("imaml", {}),
    ("amaml", {"forward": "rk4", "backward": "rk4"}),  # whose cost no kink in the loss can drive up
)
HELD_OUT = range(1_000_000, 1_000_008)  # seeds of the batches that the starts are judged on, and nobody trains on
EVERY = 25  # updates between two checkpoints
LEVEL = 0.05  # of the paired test: starts above it are told as equal


@dataclass(frozen=True)
class Trial:
    """One method's training, and what its start is worth.

    Attributes:
        name: of the method; "no training" for the model's own values.
        theta: the start, ``[d]``.
        losses: on each held-out task after K plain gradient steps, ``[tasks]``.
        updates: that the budget allowed.
        seconds: that they took.
        notes: what went wrong, in sentences.
    """

    name: str
    theta: Tensor
    losses: Tensor
    updates: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The mean loss; infinite where one is not finite."""
        return float(self.losses.mean()) if bool(torch.isfinite(self.losses).all()) else math.inf


def run(
    factory: str,
    *,
    steps: int,
    inner_lr: float,
    outer_lr: float,
    seconds: float,
    directory: Path,
    device: str,
    say: Callable[[str], None],
) -> tuple[am.MetaProblem, list[Trial]]:
    """Train by each method for an equal share of the seconds, and judge all starts on the same held-out tasks.

    Interrupted, it goes on from the last checkpoint of each method.

    Raises:
        InputError: the file, its function or what that returns cannot be used.
    """
    custom = Custom(factory=factory)
    for note in custom.check(device).notes:
        say(note)
    dtype = custom.dtype()
    problem, theta, _ = custom.instance(0, 0, dtype, device)
    tasks = custom.sampler(dtype, device)
    held_out = [tasks(seed) for seed in HELD_OUT]
    judge = partial(_losses, problem, held_out, steps, inner_lr)
    trials = [Trial("no training", theta, judge(theta))]
    options = {"inner_steps": steps, "inner_lr": inner_lr}
    for name, more in VARIANTS:
        try:
            method = am.create_method(name, **options, **more)
            trials.append(_trial(method, problem, theta, tasks, outer_lr, seconds / len(VARIANTS), directory, judge))
        except am.InputError as error:
            say(f"{name}: {error}")
            continue
        say(f"{name}: {trials[-1].updates} updates in {trials[-1].seconds:.0f} s, loss {trials[-1].score:.4g}.")
    return problem, trials


def _trial(
    method: am.MetaGradientMethod,
    problem: am.MetaProblem,
    theta: Tensor,
    tasks: Callable[[int], am.TaskBatch],
    outer_lr: float,
    seconds: float,
    directory: Path,
    judge: Callable[[Tensor], Tensor],
) -> Trial:
    own = directory / method.name
    own.mkdir(parents=True, exist_ok=True)
    spent = own / "spent.json"  # by the runs before this one
    before, known = json.loads(spent.read_text()) if spent.exists() else (0.0, 1)
    began = time.monotonic()

    def batches() -> Iterator[am.TaskBatch]:
        update = 0
        while update < known or before + time.monotonic() - began < seconds:
            yield tasks(update)
            update += 1

    def spend(update: int, loss: float = 0.0) -> None:
        if update % EVERY == 0 or not loss:
            spent.write_text(json.dumps([before + time.monotonic() - began, update]))

    adam = partial(torch.optim.Adam, lr=outer_lr)
    options = {"updates": 10**9, "meta": theta, "optimizer": adam, "directory": own, "every": EVERY}
    done = am.train(method, problem.with_engine("eager"), batches(), on_update=spend, **options)
    spend(done.updates)
    notes = [*done.notes[:-1], done.status.remedy] if done.status != "ok" else done.notes[:-1]
    return Trial(method.name, done.theta, judge(done.theta), done.updates, float(done.seconds.sum()), tuple(notes))


def _losses(
    problem: am.MetaProblem, held_out: Sequence[am.TaskBatch], steps: int, inner_lr: float, theta: Tensor
) -> Tensor:
    plain = am.create_method("fomaml", inner_steps=steps, inner_lr=inner_lr)
    return torch.cat([plain.adapt(problem, theta, tasks).query_loss for tasks in held_out]).double().cpu()


def verdict(trials: Sequence[Trial]) -> list[str]:
    """Which start ends best, and which are as good as that as far as these tasks tell: a sentence a line."""
    finite = sorted((one for one in trials if one.score < math.inf), key=lambda one: one.score)
    if not finite:
        return ["No start has finite losses after adaptation; lower --inner-lr."]
    best, *others = finite
    equal = [one.name for one in others if not ttest_rel(best.losses, one.losses).pvalue < LEVEL]
    told = [f"The start by {best.name} ends best: a query loss of {best.score:.4g} on {len(best.losses)} new tasks."]
    if best.name == "no training":
        told = ["No training helped: the model's own values end best. Give more --minutes, or another --outer-lr."]
    if equal:
        told.append(f"Not to be told from it by a paired t-test on these tasks: {', '.join(equal)}.")
    return told


def table(trials: Sequence[Trial]) -> Table:
    """What each method came to, the best first."""
    shown = Table(title=None, box=None, pad_edge=False)
    for heading in ("start", "updates", "seconds", "query loss"):
        shown.add_column(heading, justify="left" if heading == "start" else "right")
    shown.add_column("notes", overflow="fold")
    for one in sorted(trials, key=lambda one: one.score):
        shown.add_row(one.name, str(one.updates), f"{one.seconds:.0f}", f"{one.score:.4g}", " ".join(one.notes))
    return shown
