"""Few-shot classification of synthetic greyscale images by the Conv-4 of MAML's Omniglot experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

import amaml_core as am
from bench.problems.base import MetaBenchProblem

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}

WAVES = 6  # a prototype's plane waves
CYCLES = 2.0  # the most that one makes along a side of the picture
SHIFT, WARP = 0.08, 0.15  # standard deviation of an example's displacement, in sides, and of its linear deformation
NOISE = 0.5  # standard deviation of a pixel's noise, the prototype's own being 1

FLOW_RTOL = 1e-8  # at T = 2 the reference is then good to 2e-7, and minutes of one core suffice up to T = 20


@dataclass(frozen=True)
class SyntheticImages(MetaBenchProblem):
    """Every class is a random smooth picture, every example that picture shifted, deformed and with noise on it.

    Four blocks of a 3×3 convolution of stride 2, batch normalisation by the batch's own statistics and an activation,
    then a linear layer (Finn et al. 2017, sec. 5.2); cross-entropy.

    Attributes:
        ways: classes a task; no two tasks share one.
        shots: support images a class.
        queries: query images a class.
        tasks: tasks in the batch.
        filters: channels of each convolution.
        size: pixels along a side.
        activation: "gelu", "relu" or "tanh". A smooth one by default: a flow through kinks has no converged reference.
    """

    ways: int = 5
    shots: int = 5
    queries: int = 5
    tasks: int = 4
    filters: int = 32
    size: int = 28
    activation: str = "gelu"

    text = "few-shot classification of synthetic images by a Conv-4"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("ways", "shots", "queries", "tasks", "filters", "size")
        if self.ways < 2:
            raise am.InputError(f"Problem option ways={self.ways} leaves nothing to tell apart; use 2 or more.")
        if self.activation not in ACTIVATIONS:
            raise am.InputError(
                f"Problem option activation={self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}."
            )

    def instance(
        self, seed: int, sample: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[am.MetaProblem, Tensor, am.TaskBatch]:
        """See ``MetaBenchProblem.instance``: the tasks follow from the seed, θ from the seed and the sample."""
        problem = am.MetaProblem(self._model().double(), cross_entropy)
        theta = problem.initial_parameters(seed=seed * 100_003 + sample)
        images = self._draw(Generator().manual_seed(seed))
        support, query = (part.flatten(1, 2) for part in images.split([self.shots, self.queries], 2))
        labels = torch.arange(self.ways).expand(self.tasks, self.ways)
        tasks = am.TaskBatch(
            support, labels.repeat_interleave(self.shots, 1), query, labels.repeat_interleave(self.queries, 1)
        )
        problem.model.to(device, dtype)
        return problem, theta.to(device, dtype), tasks.to(device, dtype)

    def reference_settings(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """See ``MetaBenchProblem.reference_settings``; the flow's tolerance is ``FLOW_RTOL``."""
        wanted = super().reference_settings(options)
        wanted["flow"]["rtol"] = FLOW_RTOL
        return wanted

    def _model(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before, after in pairwise([1, *[self.filters] * 4]):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.BatchNorm2d(after, track_running_stats=False),
                ACTIVATIONS[self.activation](),
            ]
        side = math.ceil(self.size / 16)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(self.filters * side**2, self.ways))

    def _draw(self, generator: Generator) -> Tensor:
        """Images ``[tasks, ways, shots + queries, 1, size, size]``, of mean 0 and variance 1 over all that could be."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(self.tasks, self.ways, *shape, generator=generator, dtype=torch.float64)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(self.tasks, self.ways, *shape, generator=generator, dtype=torch.float64)

        count, pixels = self.shots + self.queries, self.size**2
        frequency = 2 * math.pi * CYCLES * (2 * uniform(2, WAVES) - 1)
        phase = 2 * math.pi * uniform(1, WAVES)
        ticks = (torch.arange(self.size, dtype=torch.float64) + 0.5) / self.size - 0.5
        grid = torch.cartesian_prod(ticks, ticks)
        # the prototype is a formula, so that an example is that formula at displaced points: nothing is interpolated
        points = grid + SHIFT * normal(count, 1, 2) + WARP * grid @ normal(count, 2, 2)
        clean = math.sqrt(2 / WAVES) * torch.cos(points.flatten(2, 3) @ frequency + phase).sum(-1)
        noisy = clean.unflatten(2, (count, pixels)) + NOISE * normal(count, pixels)
        return (noisy / math.sqrt(1 + NOISE**2)).unflatten(-1, (1, self.size, self.size))
