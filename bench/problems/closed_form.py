"""ODEs whose gradient dL/dy₀ is known in closed form (Li et al. 2023, appendix A, and two nonlinear ones)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

import amaml_core as am
from bench.problems.base import BenchProblem, Gradient
from bench.records import Cell


@dataclass(frozen=True)
class ODE:
    """An initial value problem with a solution and an objective that can be written down.

    Attributes:
        dim: size of y.
        f: f(t, y) -> dy/dt.
        solution: (y₀, T) -> y(T), differentiable.
        loss: y(T) -> L.
        start: draws y₀ ``[dim]`` from standard normal numbers.
    """

    dim: int
    f: Callable[[Tensor, Tensor], Tensor]
    solution: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor], Tensor]
    start: Callable[[Tensor], Tensor] = lambda normal: normal


OMEGA = 2.0


def _stuart_landau(t: Tensor, y: Tensor) -> Tensor:
    growth = 1 - y.square().sum()
    return growth * y + OMEGA * torch.stack([-y[1], y[0]])


def _stuart_landau_solution(y0: Tensor, t: Tensor) -> Tensor:
    shrink = (y0.square().sum() + (1 - y0.square().sum()) * torch.exp(-2 * t)).rsqrt()
    cos, sin = torch.cos(OMEGA * t), torch.sin(OMEGA * t)
    return shrink * torch.stack([cos * y0[0] - sin * y0[1], sin * y0[0] + cos * y0[1]])


def _sixth_power(y: Tensor) -> Tensor:
    return (y - 3).pow(6).sum()


ODES = {
    # eq. 11 as its solution requires it: dy/dt = −2t³ − 2ty, y = 1 − t² + (y₀−1)exp(−t²)
    "forced_linear": ODE(
        dim=1,
        f=lambda t, y: -2 * t**3 - 2 * t * y,
        solution=lambda y0, t: 1 - t**2 + (y0 - 1) * torch.exp(-(t**2)),
        loss=_sixth_power,
    ),
    # dy/dt = y − y², y = y₀eᵗ / (1 + y₀(eᵗ−1)); y₀ > 0, where the solution exists for all t
    "logistic": ODE(
        dim=1,
        f=lambda t, y: y - y.square(),
        solution=lambda y0, t: y0 * torch.exp(t) / (1 + y0 * torch.expm1(t)),
        loss=_sixth_power,
        start=torch.exp,
    ),
    # a rotation with a limit cycle: dy/dt = (1 − |y|²) y + ω Jy
    "stuart_landau": ODE(dim=2, f=_stuart_landau, solution=_stuart_landau_solution, loss=_sixth_power),
}


@dataclass(frozen=True)
class OdeGradient:
    """A gradient at the ODE level, in the shape that probes read."""

    grad: Tensor
    query_loss: Tensor
    status: tuple[am.Status, ...] = (am.Status("ok"),)
    stats: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ClosedForm(BenchProblem):
    """dL/dy₀ of an ODE with a known solution. Methods: "adjoint", and its rival "autodiff" through the same steps.

    Attributes:
        ode: one of ``ODES``.
    """

    ode: str = "forced_linear"

    text = "ODEs with a known gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ode not in ODES:
            raise am.InputError(f"Problem closed_form has no ODE {self.ode!r}; choose one of {', '.join(ODES)}.")

    def resolve_method(self, method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """See ``BenchProblem.resolve_method``."""
        if method == "adjoint":  # the same options as amaml's, as far as they make sense for a bare ODE
            made, target = am.create_method("amaml", **options), "flow"
            names = ("inner_steps", "inner_lr", "forward", "backward", "num_states", "rtol", "atol")
            return {name: value for name, value in made.options().items() if name in names}, target
        if method == "autodiff":
            if unknown := set(options) - {"inner_steps", "inner_lr", "forward"}:
                raise am.InputError(f"autodiff has no option {unknown.pop()!r}; it has inner_steps, inner_lr, forward.")
            am.create_method("maml", inner_steps=options.get("inner_steps", 0), inner_lr=options.get("inner_lr", 0))
            return {"forward": "heun", **options}, "unrolled"
        raise am.InputError(f"Problem closed_form has no method {method!r}; choose adjoint or autodiff.")

    def update(self, cell: Cell, sample: int) -> Callable[[], Gradient]:
        """See ``BenchProblem.update``."""
        ode, options = ODES[self.ode], cell.options
        y0 = self._start(cell.seed, sample).to(cell.device, getattr(torch, cell.dtype))
        horizon, steps = options["inner_steps"] * options["inner_lr"], options["inner_steps"]
        terminal = torch.func.grad(ode.loss)
        common = {"f": ode.f, "u0": y0, "t1": horizon, "terminal_grad": terminal, "forward": options["forward"]}
        if cell.method == "autodiff":
            gradient = partial(am.autodiff_gradient, **common, num_states=steps)
        else:
            extra = {name: options[name] for name in ("backward", "rtol", "atol")}
            gradient = partial(am.adjoint_gradient, **common, num_states=options["num_states"], **extra)

        def update() -> OdeGradient:
            end, grad = found = gradient()
            status = found.status if isinstance(found, am.AdjointGradient) else OdeGradient.status[0]
            return OdeGradient(grad, ode.loss(end).reshape(1), (status,))

        return update

    def known_references(self, cell: Cell, sample: int) -> dict[str, Tensor]:
        """See ``BenchProblem.known_references``: the flow's, differentiated through the solution."""
        ode = ODES[self.ode]
        horizon = torch.tensor(cell.options["inner_steps"] * cell.options["inner_lr"], dtype=torch.float64)
        exact = torch.func.grad(lambda y0: ode.loss(ode.solution(y0, horizon)))
        return {"flow": exact(self._start(cell.seed, sample))}

    def _start(self, seed: int, sample: int) -> Tensor:
        ode = ODES[self.ode]
        generator = Generator().manual_seed(seed)
        return ode.start(torch.randn(self.samples, ode.dim, generator=generator, dtype=torch.float64)[sample])
