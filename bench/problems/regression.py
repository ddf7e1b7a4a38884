"""Two-dimensional regression: the CosMixture and Alpine families (Li et al. 2023, sec. 5.1)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss

import amaml_core as am
from bench.problems.base import MetaBenchProblem


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
    def _draw(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        """``count`` points a task: x ``[tasks, count, 2]`` and y ``[tasks, count, 1]``."""

    def instance(
        self, seed: int, sample: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[am.MetaProblem, Tensor, am.TaskBatch]:
        """See ``MetaBenchProblem.instance``: the tasks follow from the seed, θ from the seed and the sample."""
        sizes = [2, *[self.width] * self.depth, 1]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after, dtype=torch.float64), nn.Tanh()]
        problem = am.MetaProblem(nn.Sequential(*layers[:-1]), mse_loss)
        theta = problem.initial_parameters(seed=seed * 100_003 + sample)
        x, y = self._draw(Generator().manual_seed(seed), self.shots + self.queries)
        tasks = am.TaskBatch(x[:, : self.shots], y[:, : self.shots], x[:, self.shots :], y[:, self.shots :])
        problem.model.to(device, dtype)
        return problem, theta.to(device, dtype), tasks.to(device, dtype)

    def _uniform(self, generator: Generator, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.tasks, *shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class CosMixture(Regression):
    """f(x) = −0.1 Σᵢ A cos(ω xᵢ + φ) − Σᵢ xᵢ² on [−1, 1]², A ∈ [0.1, 1], ω ∈ [π/2, 2π], φ ∈ [3, 6] for each task."""

    text = "2-D regression of random cosine mixtures"

    def _draw(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        amplitude = self._uniform(generator, 0.1, 1.0, 1, 1)
        frequency = self._uniform(generator, 0.5 * math.pi, 2 * math.pi, 1, 1)
        phase = self._uniform(generator, 3.0, 6.0, 1, 1)
        x = self._uniform(generator, -1.0, 1.0, count, 2)
        y = -0.1 * amplitude * torch.cos(frequency * x + phase) - x.square()
        return x, y.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Alpine(Regression):
    """f(x) = Σᵢ |xᵢ sin(xᵢ + φᵢ) + 0.1 xᵢ| on [−10, 10]², φᵢ ∈ [−5π/12, 5π/12] for each task and coordinate."""

    text = "2-D regression of random Alpine functions"

    def _draw(self, generator: Generator, count: int) -> tuple[Tensor, Tensor]:
        phase = self._uniform(generator, -5 * math.pi / 12, 5 * math.pi / 12, 1, 2)
        x = self._uniform(generator, -10.0, 10.0, count, 2)
        y = (x * torch.sin(x + phase) + 0.1 * x).abs()
        return x, y.sum(-1, keepdim=True)
