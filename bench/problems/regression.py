"""Two-dimensional regression: the CosMixture and Alpine families (Li et al. 2023, sec. 5.1)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import mse_loss

import amaml_core as am
from amaml_core.tasks import generator as generator_of
from bench.problems.base import MetaBenchProblem, mlp
from bench.problems.training import Arena, TrainingProblem


@dataclass(frozen=True)
class Regression(MetaBenchProblem):
    """Tasks that are random members of a family of functions on a square; an MLP with tanh, plain mean squared error.

    Attributes:
        shots: support points a task.
        queries: query points a task.
        tasks: tasks in the batch.
        width: of each hidden layer.
        depth: number of hidden layers.
    """

    shots: int = 100
    queries: int = 100
    tasks: int = 5
    width: int = 32
    depth: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("shots", "queries", "tasks", "width", "depth")

    @abstractmethod
    def _draw(self, generator: Generator, tasks: int, count: int) -> tuple[Tensor, Tensor]:
        """``count`` points of each of so many tasks: x ``[tasks, count, 2]`` and y ``[tasks, count, 1]``."""

    def _batch(self, generator: Generator, tasks: int, queries: int) -> am.TaskBatch:
        x, y = self._draw(generator, tasks, self.shots + queries)
        return am.TaskBatch(x[:, : self.shots], y[:, : self.shots], x[:, self.shots :], y[:, self.shots :])

    def instance(
        self, seed: int, sample: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[am.MetaProblem, Tensor, am.TaskBatch]:
        """See ``MetaBenchProblem.instance``: the tasks follow from the seed, θ from the seed and the sample."""
        problem = am.MetaProblem(mlp(2, self.width, self.depth), mse_loss)
        theta = problem.initial_parameters(seed=seed * 100_003 + sample)
        tasks = self._batch(Generator().manual_seed(seed), self.tasks, self.queries)
        problem.model.to(device, dtype)
        return problem, theta.to(device, dtype), tasks.to(device, dtype)


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Independent uniform float64 numbers."""
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class CosMixture(Regression):
    """f(x) = −0.1 Σᵢ A cos(ω xᵢ + φ) − Σᵢ xᵢ² on [−1, 1]², A ∈ [0.1, 1], ω ∈ [π/2, 2π], φ ∈ [3, 6] for each task."""

    text = "2-D regression of random cosine mixtures"

    def _draw(self, generator: Generator, tasks: int, count: int) -> tuple[Tensor, Tensor]:
        amplitude = uniform(generator, 0.1, 1.0, tasks, 1, 1)
        frequency = uniform(generator, 0.5 * math.pi, 2 * math.pi, tasks, 1, 1)
        phase = uniform(generator, 3.0, 6.0, tasks, 1, 1)
        x = uniform(generator, -1.0, 1.0, tasks, count, 2)
        y = -0.1 * amplitude * torch.cos(frequency * x + phase) - x.square()
        return x, y.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Alpine(Regression):
    """f(x) = Σᵢ |xᵢ sin(xᵢ + φᵢ) + 0.1 xᵢ| on [−10, 10]², φᵢ ∈ [−5π/12, 5π/12] for each task and coordinate."""

    text = "2-D regression of random Alpine functions"

    def _draw(self, generator: Generator, tasks: int, count: int) -> tuple[Tensor, Tensor]:
        phase = uniform(generator, -5 * math.pi / 12, 5 * math.pi / 12, tasks, 1, 2)
        x = uniform(generator, -10.0, 10.0, tasks, count, 2)
        y = (x * torch.sin(x + phase) + 0.1 * x).abs()
        return x, y.sum(-1, keepdim=True)


@dataclass(frozen=True)
class RegressionTraining(TrainingProblem, Regression):
    """Meta-training on tasks of a family and meta-test on others of it (Li et al. 2023, sec. 5.1).

    Attributes:
        train_tasks: tasks of the meta-training, each with points of its own that stay.
        test_queries: query points of a test task.
    """

    train_tasks: int = 100
    test_queries: int = 100

    guesses = ("global-mean", "shots-mean")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("train_tasks", "test_queries")
        if self.tasks > self.train_tasks:
            raise am.InputError(f"Problem options: tasks={self.tasks} cannot be drawn from {self.train_tasks}.")
        if self.normaliser == "range":
            raise am.InputError('Problem option normaliser="range" needs bounded targets; use "task-std".')

    def arena(self, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Arena:
        """See ``TrainingProblem.arena``: the training tasks, the test tasks and θ each have a stream of their own."""
        pool = self._batch(generator_of(seed, -1), self.train_tasks, self.queries)
        test = self._batch(generator_of(seed, -2), self.test_tasks, self.test_queries)
        shift_x, scale_x, shift_y, scale_y = 0.0, 1.0, 0.0, 1.0
        if self.standardise:
            x, y = torch.cat([pool.support_x, pool.query_x], 1), torch.cat([pool.support_y, pool.query_y], 1)
            shift_x, scale_x = x.mean((0, 1)), x.std((0, 1), correction=0)
            shift_y, scale_y = float(y.mean()), float(y.std(correction=0))
        pool, test = (
            am.TaskBatch(
                (part.support_x - shift_x) / scale_x,
                (part.support_y - shift_y) / scale_y,
                (part.query_x - shift_x) / scale_x,
                (part.query_y - shift_y) / scale_y,
            )
            for part in (pool, test)
        )
        problem = am.MetaProblem(mlp(2, self.width, self.depth), self._loss)
        theta = self._theta(problem, seed)
        problem.model.to(device, dtype)
        seen = torch.cat([pool.support_y, pool.query_y], 1)
        guesses = {
            "global-mean": seen.mean().expand_as(test.query_y),
            "shots-mean": test.support_y.mean(1, keepdim=True).expand_as(test.query_y),
        }
        pool = pool.to(device, dtype)
        return Arena(
            problem,
            theta.to(device, dtype),
            am.batches(pool, self.tasks, seed),
            test.to(device, dtype),
            unit=scale_y,
            guesses={name: guess.to(device, dtype) for name, guess in guesses.items()},
            counts={"training": self.train_tasks, "test": self.test_tasks},
        )


@dataclass(frozen=True)
class CosMixtureTraining(RegressionTraining, CosMixture):
    """Meta-training on CosMixture."""

    text = "meta-training on 2-D regression of random cosine mixtures"


@dataclass(frozen=True)
class AlpineTraining(RegressionTraining, Alpine):
    """Meta-training on Alpine."""

    text = "meta-training on 2-D regression of random Alpine functions"
