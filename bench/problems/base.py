"""What a problem offers to the probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

import amaml_core as am
from amaml_core.engine.rule import Engine
from bench.peers import PEERS, create
from bench.records import Cell


def mlp(inputs: int, width: int, depth: int) -> nn.Sequential:
    """A network with ``depth`` hidden layers of ``width`` tanh units and one output, in float64."""
    layers: list[nn.Module] = []
    for before, after in pairwise([inputs, *[width] * depth, 1]):
        layers += [nn.Linear(before, after, dtype=torch.float64), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Gradient(Protocol):
    """What an outer update hands to a probe; ``amaml_core.MetaGradient`` is one."""

    @property
    def grad(self) -> Tensor:
        """The gradient, of any shape."""
        ...

    @property
    def query_loss(self) -> Tensor:
        """One a task: the loss at the end of the trajectory."""
        ...

    @property
    def status(self) -> Sequence[am.Status]:
        """One a task."""
        ...

    @property
    def stats(self) -> Mapping[str, int]:
        """Counters."""
        ...


@dataclass(frozen=True)
class BenchProblem(ABC):
    """A problem of the suite: a frozen value of plain options, from which all data and initial values follow.

    Attributes:
        samples: initial values that one cell is measured at; the errors at each are kept.
    """

    samples: int = 1

    text: ClassVar[str]

    def __post_init__(self) -> None:
        self._positive("samples")

    def _positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise am.InputError(f"Problem option {name}={value!r} is not a positive integer.")

    def prepare(self, say: Callable[[str], None]) -> None:  # noqa: B027
        """Get what the problem needs before any of its cells runs, and say what people should know of it.

        Raises:
            InputError: something is missing; its cells will be skipped for that reason.
        """

    @abstractmethod
    def resolve_method(self, method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """All options of a method on this problem, defaults written out, and the method's target.

        Raises:
            InputError: the method does not apply here, or an option is unknown or out of range.
        """

    def resolve_engine(self, method: str, engine: str) -> str:
        """The engine that a method runs in here, whichever was asked for; "eager" where there is no other."""
        return "eager"

    @abstractmethod
    def update(self, cell: Cell, sample: int) -> Callable[[], Gradient]:
        """Everything ready for one outer update, which the returned call makes (and may make again)."""

    def known_references(self, cell: Cell, sample: int) -> dict[str, Tensor]:
        """Float64 gradients by target ("flow", "unrolled", "stationary") that can be written down."""
        return {}


@dataclass(frozen=True)
class MetaBenchProblem(BenchProblem):
    """A problem with a model, tasks and an initialisation, which every registered method and peer applies to."""

    def resolve_method(self, method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """See ``BenchProblem.resolve_method``."""
        made = create(method, **options)
        return made.options(), made.target

    def resolve_engine(self, method: str, engine: str) -> str:
        """See ``BenchProblem.resolve_engine``; an outside library has its "own"."""
        return "own" if method in PEERS else engine

    @abstractmethod
    def instance(
        self, seed: int, sample: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> tuple[am.MetaProblem, Tensor, am.TaskBatch]:
        """The model's problem, θ ``[d]`` and the tasks. Drawn in float64 and then cast: all dtypes share one point."""

    def update(self, cell: Cell, sample: int) -> Callable[[], Gradient]:
        """See ``BenchProblem.update``."""
        method = create(cell.method, **cell.options)
        problem, theta, tasks = self.instance(cell.seed, sample, getattr(torch, cell.dtype), cell.device)
        if not isinstance(method, am.MetaGradientMethod):
            return method.prepare(problem, theta, tasks)
        problem = problem.with_engine(cast(Engine, cell.engine))
        return lambda: method.meta_gradient(problem, theta, tasks)

    def reference_dtype(self) -> torch.dtype:
        """In which references are worked out: float64, unless a problem cannot be had in it."""
        return torch.float64

    def reference_settings(self, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The references that apply to a method with these options: target -> the oracle's own keywords."""
        steps, lr, prox = options["inner_steps"], options["inner_lr"], options.get("prox", 0.0)
        wanted: dict[str, dict[str, Any]] = {
            "flow": {"horizon": steps * lr, "prox": prox},
            "unrolled": {"steps": steps, "lr": lr, "prox": prox},
        }
        if "lam" in options:
            wanted["stationary"] = {"lam": options["lam"]}
        return wanted
