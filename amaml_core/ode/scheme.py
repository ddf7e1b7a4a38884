"""Systems of ordinary differential equations, explicit schemes, and the trajectories that they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from amaml_core.engine.eager import vector_jacobian
from amaml_core.engine.rule import pieces
from amaml_core.errors import InputError

Field = Callable[[Tensor, Tensor], Tensor]
"""f(t [B, 1], u [B, d]) -> du/dt [B, d]."""
Linearize = Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""(t [B, 1], u [B, d]) -> (f(t, u) [B, d], the product v -> (∂f/∂u)ᵀ v)."""


class OneStep(Protocol):
    """A scheme's step as a function of the state alone: what is differentiated. Hashable, for engines compile it."""

    @property
    def evaluations(self) -> int:
        """Of f."""
        ...

    def __call__(self, system: System, u: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor]:
        """The state after it, ``[B, d]``, from u ``[B, d]``, t and h ``[B, 1]``."""
        ...


@dataclass(frozen=True)
class Transposed:
    """(u, t, h, v) -> (∂step/∂u)ᵀ v, with the step and its derivative in one call."""

    step: OneStep

    def __call__(self, system: System, u: Tensor, t: Tensor, h: Tensor, v: Tensor) -> tuple[Tensor]:
        """See ``System.transposed``."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (value,) = self.step(system, u, t, h)
        return (vector_jacobian(value, u, v, keep=False),)


class System:
    """What is solved: du/dt = f(t, u), with the products that the way back needs.

    Solvers hand whole steps to ``run``, so that an engine may compile them.

    Args:
        field: f.
        linearize: (t ``[B, 1]``, u ``[B, d]``) -> f(t, u) ``[B, d]`` and the product v -> (∂f/∂u)ᵀ v.
    """

    def __init__(self, field: Field, linearize: Linearize | None = None) -> None:
        self.field = field
        self.linearize = linearize or _no_products

    def run(self, step: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """``step(self, *tensors)``."""
        return step(self, *tensors)

    def transposed(self, step: OneStep, u: Tensor, t: Tensor, h: Tensor, v: Tensor) -> Tensor:
        """(∂step(self, u, t, h)/∂u)ᵀ v, ``[B, d]``; f must be differentiable."""
        return self.run(Transposed(step), u, t, h, v)[0]

    @property
    def per_chain(self) -> int | None:
        """How many steps ``chain`` takes at once; None: all."""
        return None

    def chain(self, steps: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        """``steps(self, *tensors)``, which runs steps one after the other and reads nothing from the device."""
        return steps(self, *tensors)

    def per_call(self, cost: int) -> int | None:
        """How many steps of this many evaluations make one compiled call; None where nothing is compiled."""
        return None


def _no_products(t: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    raise InputError("This system has no products with (∂f/∂u)ᵀ; build it with System(field, linearize).")


class SolverFailedError(RuntimeError):
    """The adaptive solver gave up: the state left the finite numbers, or too many or too small steps were needed."""


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta scheme (Butcher tableau).

    Attributes:
        a: weights of the earlier slopes in each stage.
        b: weights of the slopes in the step.
        c: where in the step each stage is taken, 0 at its start and 1 at its end.
        order: global order of accuracy.
        stability: the z at which exp(-z) stops being damped, on the negative real axis.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    stability: float

    def step(self, slope: Callable[[float, Tensor], Tensor], u: Tensor, h: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One step of ``slope(c, u)`` over h: the new state and the stage values that the slopes were taken at."""
        slopes: list[Tensor] = []
        stages: list[Tensor] = []
        for row, c in zip(self.a, self.c, strict=True):
            stages.append(_combine(u, h, row, slopes))
            slopes.append(slope(c, stages[-1]))
        return _combine(u, h, self.b, slopes), stages


def _combine(u: Tensor, h: Tensor, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            u = u + (h * weight) * slope
    return u


EULER = Tableau(a=((),), b=(1.0,), c=(0.0,), order=1, stability=2.0)
HEUN = Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), order=2, stability=2.0)
RK4 = Tableau(
    a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    c=(0.0, 0.5, 0.5, 1.0),
    order=4,
    stability=2.785293563405282,
)
FIXED_GRIDS = {"euler": EULER, "heun": HEUN, "rk4": RK4}

NumStates = int | Literal["accepted"]


@dataclass(frozen=True)
class Trajectory:
    """The tracked points of B solutions.

    Attributes:
        times: ``[K+1, B]``, each task's own, from 0 to T_b; always float64, so that their differences are the
            steps to rounding also where the states are float32.
        states: K+1 states ``[B, d]``, the first and the last included.
        steps: accepted steps of the solver.
        rejected: rejected steps of an adaptive solver.
        every: only every so-manieth state is kept, and the last one; ``replay`` computes the others again.
        tableau: the scheme of a fixed grid.
        taken: for each interval the step (system, u, t, h) -> (u',) that was taken, where that is known and needed.
    """

    times: Float[Tensor, "points tasks"]
    states: Tensor | list[Tensor]
    steps: int
    rejected: int = 0
    every: int = 1
    tableau: Tableau | None = None
    taken: Sequence[OneStep] = ()

    @property
    def evaluations(self) -> int:
        """Of f in the steps that were taken."""
        return sum(step.evaluations for step in self.taken[: len(self.times) - 1])

    def segments(self) -> list[tuple[int, int]]:
        """The runs of intervals (first point, last point) between kept states."""
        last = len(self.times) - 1
        if self.every == 1:
            return [(0, last)]
        return [(first, min(first + self.every, last)) for first in range(0, last, self.every)]

    def replay(self, system: System, first: int, last: int) -> Tensor | list[Tensor]:
        """The states of the points from ``first`` to ``last``, one of ``segments``."""
        if self.every == 1:
            return self.states[first : last + 1]
        assert self.tableau is not None
        states = [self.states[first // self.every]]
        starts = self.times[first:last].to(states[0].dtype).unsqueeze(-1)
        h = self.times[-1:].T.to(starts.dtype) / (len(self.times) - 1)
        for reached in march(system, states[0], starts, h, self.tableau):
            states += reached
        return states

    def stopped_at(self, index: Tensor) -> Trajectory:
        """Every task held still from its own point ``index [B]`` on: later intervals get width zero."""
        points = torch.arange(int(index.max()) + 1, device=index.device).unsqueeze(1).minimum(index)
        tasks = torch.arange(len(index), device=index.device)
        times = self.times.gather(0, points)
        rows = [torch.stack([self.states[int(p)][b] for p, b in zip(row, tasks, strict=True)]) for row in points]
        return replace(self, times=times, states=rows)


@dataclass(frozen=True)
class Advance:
    """``count`` steps of a scheme: (u ``[B, d]``, times ``[count, B, 1]``, h ``[B, 1]``) -> the state after each."""

    tableau: Tableau
    count: int

    def __call__(self, system: System, u: Tensor, times: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """All states, the last one last."""
        states = []
        for j in range(self.count):
            u, _ = self.tableau.step(lambda c, stage, t=times[j]: system.field(t + c * h, stage), u, h)
            states.append(u)
        return tuple(states)


@dataclass(frozen=True)
class Single:
    """One step of a fixed grid's scheme, see ``OneStep``."""

    tableau: Tableau

    @property
    def evaluations(self) -> int:
        """Of f."""
        return len(self.tableau.b)

    def __call__(self, system: System, u: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor]:
        """See ``OneStep``."""
        return (self.tableau.step(lambda c, stage: system.field(t + c * h, stage), u, h)[0],)


def largest_rms(error: Float[Tensor, "tasks params"]) -> Tensor:
    """The largest of the tasks' RMS norms, over the coordinates that are not zero.

    Those that never move, as parameters that the loss does not use, would hide what goes wrong in the others.
    """
    moving = error.sign().abs().sum(-1).clamp_min(1.0)
    return (error.square().sum(-1) / moving).sqrt().max()


def march(system: System, u: Tensor, starts: Tensor, h: Tensor, tableau: Tableau) -> Iterator[tuple[Tensor, ...]]:
    """Steps of h ``[B, 1]`` from u, one at each of the times ``[K, B, 1]``; the states come in runs of a call each."""
    with torch.no_grad():
        for length in pieces(len(starts), system.per_call(len(tableau.b)) or 1):
            reached = system.run(Advance(tableau, length), u, starts[:length], h)
            yield reached
            u, starts = reached[-1], starts[length:]


def fixed_grid(
    system: System, u0: Tensor, horizon: Tensor, tableau: Tableau, count: int, keep: bool, every: int
) -> Trajectory:
    """``count`` equal steps of each task's own [0, T_b]; see ``ode.solve``."""
    times = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=u0.device).unsqueeze(1) * horizon
    h = (horizon / count).unsqueeze(1)
    every = every if keep else count
    states = u0.new_empty((-(-count // every) + 1, *u0.shape))
    states[0] = u = u0
    done = 0
    for reached in march(system, u, times[:-1].to(u0.dtype).unsqueeze(-1), h, tableau):
        for u in reached:
            done += 1
            if done % every == 0:
                states[done // every] = u
    states[-1] = u
    if not keep:
        return Trajectory(times[[0, -1]], states, steps=count)
    return Trajectory(times, states, count, every=every, tableau=tableau, taken=[Single(tableau)] * count)
