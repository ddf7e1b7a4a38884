"""Problems to meta-train on: tasks for the outer loop, others for the meta-test, and what a trivial guess would err."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import amaml_core as am
from bench.problems.base import MetaBenchProblem

Normaliser = Literal["range", "task-std"]


@dataclass(frozen=True)
class Arena:
    """Everything that meta-training and meta-testing under one seed need.

    Attributes:
        problem: model and losses.
        theta: the initialisation before training, ``[d]``.
        batch: the task batch of outer update g.
        test: the test tasks, ``test_tasks`` of them, seen by no update.
        query_mask: which of their query examples count, ``[B, n]``; all where None.
        unit: what one unit of the targets is in the data's own unit.
        target_range: the largest target less the smallest that the data allow, in its own unit; None without bounds.
        guesses: what each of ``TrainingProblem.guesses`` predicts for the test queries, shaped as ``test.query_y``.
        counts: numbers of tasks, for people.
    """

    problem: am.MetaProblem
    theta: Tensor
    batch: Callable[[int], am.TaskBatch]
    test: am.TaskBatch
    query_mask: Tensor | None = None
    unit: float = 1.0
    target_range: float | None = None
    guesses: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingProblem(MetaBenchProblem):
    """A problem with tasks enough to meta-train on; ``instance`` is its first task batch.

    Besides the methods it takes ``guesses``, which train nothing: what a method has to beat.

    Attributes:
        tasks: tasks in a batch.
        outer_updates: G.
        outer_lr: of Adam.
        test_tasks: tasks of the meta-test.
        test_steps: gradient steps in the meta-test, of the inner learning rate, whatever the method trained with.
        normaliser: of the nRMSE: "range", of the targets, or "task-std", the standard deviation of each test task's
            query targets; tasks where it is zero are left out and counted.
        standardise: inputs and targets to mean 0 and variance 1 over the meta-training tasks.
        half: ½·MSE in the place of MSE, which halves all gradients and so the horizon.
    """

    tasks: int = 5
    outer_updates: int = 5000
    outer_lr: float = 1e-3
    test_tasks: int = 100
    test_steps: int = 100
    normaliser: Normaliser = "task-std"
    standardise: bool = False
    half: bool = False

    guesses: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("tasks", "outer_updates", "test_tasks", "test_steps")
        if self.normaliser not in get_args(Normaliser):
            raise am.InputError(
                f"Problem option normaliser={self.normaliser!r} is unknown; choose one of "
                f"{', '.join(get_args(Normaliser))}."
            )
        if not self.outer_lr > 0:
            raise am.InputError(f"Problem option outer_lr={self.outer_lr!r} is not a positive number.")

    def resolve_method(self, method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """See ``BenchProblem.resolve_method``; a guess takes ``inner_steps`` and ``inner_lr``, which change nothing."""
        if method not in self.guesses:
            return super().resolve_method(method, options)
        if set(options) != {"inner_steps", "inner_lr"}:
            raise am.InputError(f"{method} has the options inner_steps and inner_lr, not {', '.join(options)}.")
        return dict(options), "guess"

    @abstractmethod
    def arena(self, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Arena:
        """All of it under this seed; drawn in float64 and then cast."""

    def instance(
        self, seed: int, sample: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[am.MetaProblem, Tensor, am.TaskBatch]:
        """See ``MetaBenchProblem.instance``: the tasks follow from the seed, θ from the seed and the sample."""
        made = self.arena(seed, torch.float64)
        theta = self._theta(made.problem, seed, sample)
        made.problem.model.to(device, dtype)
        return made.problem, theta.to(device, dtype), made.batch(0).to(device, dtype)

    def _theta(self, problem: am.MetaProblem, seed: int, sample: int = 0) -> Tensor:
        return problem.initial_parameters(seed=seed * 100_003 + sample)

    def _loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        loss = mse_loss(prediction, target)
        return 0.5 * loss if self.half else loss
