"""Backward solves of dλ/dt = −(∂f/∂u)ᵀ λ along a trajectory (Li et al. 2023, eq. 6 and 8)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from amaml_core.engine.rule import pieces
from amaml_core.errors import InputError
from amaml_core.ode.scheme import EULER, FIXED_GRIDS, HEUN, RK4, NumStates, System, Tableau, Trajectory
from amaml_core.ode.solve import ADAPTIVE, OURS, STABILIZED, solve

# Euler takes the Jacobian at the far (left) end: that makes it the exact reverse of forward Euler.
BACKWARD = {"euler": replace(EULER, c=(1.0,)), "modified_euler": HEUN, "rk4": RK4}
MAX_GROWTH = 5.0  # of λ on its way: negative curvature lengthens it too, so that the error is estimated then
MISSED = 0.05  # of the way there, by which a back-solve may miss the start
BACKWARDS = (*BACKWARD, "discrete", "backsolve")


@dataclass(frozen=True)
class AdjointSolution:
    """The end of the way back.

    Attributes:
        adjoint: λ(0), ``[B, d]``.
        integral: ∫λ dt over [0, T_b] by the same scheme, ``[B, d]``; None unless asked for.
        stiffness: ``[B]``, the largest h‖(∂f/∂u)ᵀλ‖/‖λ‖ met at the ends of intervals: beyond the scheme's stability
            limit, λ is not damped as the ODE damps it but amplified. None for a back-solve.
        start: û(0) as the back-solve found it, ``[B, d]``; None where the states were tracked.
        growth: ``[B]``, the largest ‖λ(t)‖/‖λ(T)‖ met by differentiated steps; None for other ways back.
    """

    adjoint: Float[Tensor, "tasks params"]
    integral: Float[Tensor, "tasks params"] | None = None
    stiffness: Float[Tensor, " tasks"] | None = None
    start: Float[Tensor, "tasks params"] | None = None
    growth: Float[Tensor, " tasks"] | None = None


def tracked(
    system: System,
    trajectory: Trajectory,
    terminal: Float[Tensor, "tasks params"],
    tableau: Tableau,
    *,
    integrate: bool = False,
) -> AdjointSolution:
    """Solve the adjoint ODE backward along tracked states, one step an interval.

    Each point's linearisation is made once and shared by the two intervals that meet there. Mid-points come from the
    cubic Hermite interpolant of (u_j, f_j, u_{j+1}, f_{j+1}), whose error O(h⁴) keeps a fourth-order scheme's order.

    Args:
        system: f, with products.
        trajectory: the tracked states.
        terminal: λ(T), ``[B, d]``.
        tableau: the scheme, its ``c`` counted from the interval's right end.
        integrate: carry ∫λ dt as one more component of the same scheme.
    """
    times = trajectory.times.to(terminal.dtype).unsqueeze(-1)
    steps = trajectory.times.diff(dim=0).to(terminal.dtype).unsqueeze(-1)
    found = [terminal, terminal.new_zeros(len(terminal)), *([torch.zeros_like(terminal)] if integrate else [])]
    if tableau.c[0] == 0.0:
        found += system.run(_ahead, times[-1], trajectory.states[-1], terminal)
    cost = 2 * len({*tableau.c} - {0.0}) + len(tableau.c)  # products, and linearisations, which hold memory besides
    whole = len(steps)
    for start, last in reversed(trajectory.segments()):
        states = trajectory.replay(system, start, last)
        for count in pieces(last - start, system.per_chain or last - start):
            first = last - count
            here = states[first - start : last - start + 1]
            way = WayBack(Retreat(tableau, count, integrate, goes_on=count < whole), cost)
            found = system.chain(way, times[first:last], steps[first:last], *found, *here[:-1], here[-1])
            last = first
    return AdjointSolution(found[0], found[2] if integrate else None, found[1])


def _ahead(system: System, t: Tensor, u: Tensor, adjoint: Tensor) -> tuple[Tensor, Tensor]:
    """What an interval needs of its right end: the product with λ, and f."""
    value, product = system.linearize(t, u)
    return product(adjoint), value


@dataclass(frozen=True)
class Retreat:
    """The adjoint's way back over ``count`` intervals, in one call.

    Takes and returns λ, the stiffness and, where asked for, ∫λ dt; schemes that use the right end also hand on what is
    known of it, (∂f/∂u)ᵀλ and f, so that each point is linearised once however the way is cut into calls.
    """

    tableau: Tableau
    count: int
    integrate: bool
    goes_on: bool

    def __call__(self, system: System, times: Tensor, steps: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """From left ends ``[count, B, 1]``, widths, what was handed on and count+1 states to what is handed on."""
        adjoint, stiffness, *found = tensors[: -self.count - 1]
        states = tensors[-self.count - 1 :]
        integral = found.pop(0) if self.integrate else None
        for j in reversed(range(self.count)):
            h = steps[j]
            value, product = system.linearize(times[j], states[j])
            products = {1.0: product}
            if 0.5 in self.tableau.c:
                middle = 0.5 * (states[j] + states[j + 1]) + (h / 8) * (value - found[1])
                products[0.5] = system.linearize(times[j] + 0.5 * h, middle)[1]
            ratios: list[Tensor] = []

            def slope(c: float, stage: Tensor, products=products, ratios=ratios, found=found) -> Tensor:
                value = products[c](stage) if c else found[0]
                if c in (0.0, 1.0):
                    ratios.append(_norm(value) / _norm(stage).clamp_min(torch.finfo(stage.dtype).tiny))
                return value

            adjoint, stages = self.tableau.step(slope, adjoint, h)
            if integral is not None:
                for weight, stage in zip(self.tableau.b, stages, strict=True):
                    integral = integral + (h * weight) * stage
            for ratio in ratios:
                stiffness = torch.maximum(stiffness, h.squeeze(-1) * ratio)
            if found and (j or self.goes_on):
                found = [product(adjoint), value]
        return (adjoint, stiffness, *([] if integral is None else [integral]), *found)


@dataclass(frozen=True)
class WayBack:
    """What a ``Retreat`` does, in as many calls as its ``cost``, that of an interval in products, asks for."""

    retreat: Retreat
    cost: int

    def __call__(self, system: System, times: Tensor, steps: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See ``Retreat``."""
        last = count = self.retreat.count
        found, states = tensors[: -count - 1], tensors[-count - 1 :]
        for length in pieces(count, system.per_call(self.cost) or count):
            first = last - length
            part = replace(self.retreat, count=length, goes_on=self.retreat.goes_on or length < count)
            found = system.run(part, times[first:last], steps[first:last], *found, *states[first : last + 1])
            last = first
        return found


def discrete(system: System, trajectory: Trajectory, terminal: Float[Tensor, "tasks params"]) -> AdjointSolution:
    """Differentiate the forward solver's own steps: the exact gradient of what it computed, however it stepped.

    It is stable wherever the steps are: also in directions that the trajectory itself has long left.

    Args:
        system: f, differentiable.
        trajectory: with the steps that were ``taken``.
        terminal: λ(T), ``[B, d]``.
    """
    adjoint, growth = terminal, terminal.new_ones(len(terminal))
    first = _norm(terminal).clamp_min(torch.finfo(terminal.dtype).tiny)
    times = trajectory.times.to(terminal.dtype).unsqueeze(-1)
    steps = trajectory.times.diff(dim=0).to(terminal.dtype).unsqueeze(-1)
    for start, last in reversed(trajectory.segments()):
        states = trajectory.replay(system, start, last)
        for j in reversed(range(start, last)):
            adjoint = system.transposed(trajectory.taken[j], states[j - start], times[j], steps[j], adjoint)
            growth = torch.maximum(growth, _norm(adjoint) / first)
    return AdjointSolution(adjoint, growth=growth)


def backsolve(
    system: System,
    end: Float[Tensor, "tasks params"],
    horizon: Float[Tensor, " tasks"],
    terminal: Float[Tensor, "tasks params"],
    *,
    solver: str,
    num_states: NumStates,
    rtol: float,
    atol: float,
    forward_steps: int,
    integrate: bool = False,
) -> AdjointSolution:
    """Solve state and adjoint backward together from (u(T), λ(T)), with no state kept (Chen et al. 2018).

    A gradient flow is contracting, so its reverse is unstable: û(0) may be far from u(0), which ``start`` shows. A
    solve that needs far more steps than the ``forward_steps`` of the way out is chasing a solution that blows up.

    Raises:
        SolverFailedError: an adaptive solver gave up.
    """
    size = end.shape[1]
    pieces = [end, terminal] + ([torch.zeros_like(terminal)] if integrate else [])

    def reverse(s: Tensor, state: Tensor) -> Tensor:  # s = T − t
        u, adjoint = state[:, :size], state[:, size : 2 * size]
        value, product = system.linearize(horizon.unsqueeze(1) - s, u)
        return torch.cat([-value, product(adjoint)] + ([adjoint] if integrate else []), dim=1)

    path = solve(
        System(reverse),
        torch.cat(pieces, dim=1),
        horizon,
        solver=solver,
        num_states=1 if num_states == "accepted" else num_states,
        rtol=rtol,
        atol=atol,
        keep=False,
        max_steps=100 + 4 * forward_steps,
    )
    start, adjoint, *rest = path.states[-1].split(size, dim=1)
    return AdjointSolution(adjoint, rest[0] if rest else None, start=start)


def gradient_order(forward: str, backward: str) -> int:
    """The order of a gradient's error in the steps; 1 of stabilised ones, which are chosen where λ is far from more."""
    if forward in STABILIZED:
        return 1
    way_out = FIXED_GRIDS[forward].order if forward in FIXED_GRIDS else ADAPTIVE.get(forward, 2)
    return min(way_out, BACKWARD[backward].order) if backward in BACKWARD else way_out


def check_backward(backward: str, forward: str, num_states: NumStates) -> None:
    """Refuse an unknown backward scheme, and one that the way out does not fit.

    Raises:
        InputError: naming the schemes there are.
    """
    if backward not in BACKWARDS:
        raise InputError(f"backward={backward!r} is unknown; choose one of {', '.join(BACKWARDS)}.")
    if backward == "discrete" and forward not in FIXED_GRIDS and (forward not in OURS or num_states != "accepted"):
        raise InputError(
            f'backward="discrete" needs the steps of the way out: forward one of {", ".join(FIXED_GRIDS)}, or one of '
            f'{", ".join(OURS)} with num_states="accepted".'
        )


def _norm(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value, dim=-1)
