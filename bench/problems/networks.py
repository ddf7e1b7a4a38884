"""Small networks of many kinds at many states of their training, for statements that are to hold of all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

import amaml_core as am
from bench.problems.base import MetaBenchProblem

KINDS = ("mlp", "conv", "attention", "relu")
SIDE, WORDS = 6, 5  # pixels along a side of an image, and inputs that attention looks at
GAINS = (0.7, 1.0, 1.5)  # that start values are multiplied by: curvature grows with them
STAGES = ("fresh", "trained", "near the optimum")  # of θ, one sample after the other
FLOW_RTOL, MAX_EVALUATIONS = 1e-8, 40_000
REFINED = 4000  # steps of gradient descent that stand for the flow where kinks leave it no order


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Linear(2, 8)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inputs(x)
        return self.head(torch.tanh(self.attend(h, h, h, need_weights=False)[0]).mean(1))


def _model(kind: str, width: int) -> nn.Module:
    if kind == "conv":
        layers = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(4 * 9, 1)]
        return nn.Sequential(*layers)
    if kind == "attention":
        return _Attention()
    act = nn.ReLU if kind == "relu" else nn.Tanh
    return nn.Sequential(nn.Linear(2, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 1))


@dataclass(frozen=True)
class Networks(MetaBenchProblem):
    """A sample is a network, a task and a θ of its own: fresh, meta-trained, or near the support loss's optimum.

    Attributes:
        kind: "mlp" and "attention" (tanh), "conv" (GELU), or "relu", an MLP with kinks.
        examples: of the task, support and query each.
    """

    kind: str = "mlp"
    examples: int = 15

    text = "random small networks at random states of training"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._positive("examples")
        if self.kind not in KINDS:
            raise am.InputError(f"Problem option kind={self.kind!r} is unknown; choose one of {', '.join(KINDS)}.")

    def instance(
        self, seed: int, sample: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[am.MetaProblem, Tensor, am.TaskBatch]:
        """See ``MetaBenchProblem.instance``: all of it follows from the seed and the sample."""
        generator = Generator().manual_seed(seed * 100_003 + sample)
        model = _model(self.kind, (6, 10, 16)[sample % 3]).double()
        problem = am.MetaProblem(model, nn.functional.mse_loss)
        theta = GAINS[(sample + sample // 3) % 3] * problem.initial_parameters(seed=seed * 100_003 + sample)
        tasks = self._draw(generator, 1)
        stage = STAGES[sample // 3 % 3]
        if stage == "trained":
            method, others = am.create_method("fomaml", inner_steps=5, inner_lr=0.05), self._draw(generator, 8)
            for _ in range(60):
                theta = theta - 0.1 * method.meta_gradient(problem, theta, others).grad
        elif stage != "fresh":
            theta = am.create_method("fomaml", inner_steps=400, inner_lr=0.05).adapt(problem, theta, tasks).adapted[0]
        problem.model.to(device, dtype)
        return problem, theta.to(device, dtype), tasks.to(device, dtype)

    def _draw(self, generator: Generator, tasks: int) -> am.TaskBatch:
        shape = {"conv": (1, SIDE, SIDE), "attention": (WORDS, 2)}.get(self.kind, (2,))
        frequency = 1.5 * torch.randn(tasks, 1, math.prod(shape), generator=generator, dtype=torch.float64)
        frequency = frequency / math.sqrt(math.prod(shape) / 2)
        phase = torch.randn(tasks, 1, generator=generator, dtype=torch.float64)
        parts = []
        for _ in ("support", "query"):
            x = torch.randn(tasks, self.examples, *shape, generator=generator, dtype=torch.float64)
            parts += [x, torch.cos((x.flatten(2) * frequency).sum(-1) + phase).unsqueeze(-1)]
        return am.TaskBatch(*parts)

    def reference_settings(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """See ``MetaBenchProblem.reference_settings``: the flow, or the limit of unrolled steps where it has kinks."""
        horizon = options["inner_steps"] * options["inner_lr"]
        if self.kind == "relu":
            return {"unrolled": {"steps": REFINED, "lr": horizon / REFINED, "prox": 0.0}}
        bounds = {"rtol": FLOW_RTOL, "max_evaluations": MAX_EVALUATIONS}
        return {"flow": {"horizon": horizon, "prox": 0.0} | bounds}
