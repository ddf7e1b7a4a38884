"""Backward solves of dλ/dt = −(∂f/∂u)ᵀ λ along a trajectory (Li et al. 2023, eq. 6 and 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from amaml_core.engine.eager import vector_jacobian
from amaml_core.engine.rule import pieces
from amaml_core.errors import InputError, positive_integer, positive_number
from amaml_core.ode.scheme import EULER, FIXED_GRIDS, HEUN, RK4, NumStates, System, Tableau, Trajectory
from amaml_core.ode.solve import OURS, check_solver, solve

# Euler takes the Jacobian at the far (left) end: that makes it the exact reverse of forward Euler.
BACKWARD = {"euler": replace(EULER, c=(1.0,)), "modified_euler": HEUN, "rk4": RK4}
BACKWARDS = (*BACKWARD, "discrete", "backsolve")


@dataclass(frozen=True)
class AdjointSolution:
    """The end of the way back.

    Attributes:
        adjoint: λ(0), ``[B, d]``.
        integral: ∫λ dt over [0, T_b] by the same scheme, ``[B, d]``; None unless asked for.
        stiffness: ``[B]``, the largest h‖(∂f/∂u)ᵀλ‖/‖λ‖ met: beyond the scheme's stability limit, λ is not damped
            as the ODE damps it but amplified. None for a back-solve.
        start: û(0) as the back-solve found it, ``[B, d]``; None where the states were tracked.
        growth: ``[B]``, the largest factor by which one differentiated step lengthened λ; None for other ways back.
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
        for count in pieces(last - start, system.per_call(cost) or last - start):
            first = last - count
            here = states[first - start : last - start + 1]
            step = Retreat(tableau, count, integrate, goes_on=count < whole)
            found = system.run(step, times[first:last], steps[first:last], *found, *here[:-1], here[-1])
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
                if not ratios:
                    ratios.append(_norm(value) / _norm(stage).clamp_min(torch.finfo(stage.dtype).tiny))
                return value

            adjoint, stages = self.tableau.step(slope, adjoint, h)
            if integral is not None:
                for weight, stage in zip(self.tableau.b, stages, strict=True):
                    integral = integral + (h * weight) * stage
            stiffness = torch.maximum(stiffness, h.squeeze(-1) * ratios[0])
            if found and (j or self.goes_on):
                found = [product(adjoint), value]
        return (adjoint, stiffness, *([] if integral is None else [integral]), *found)


def discrete(system: System, trajectory: Trajectory, terminal: Float[Tensor, "tasks params"]) -> AdjointSolution:
    """Differentiate the forward solver's own steps: the exact gradient of what it computed, however it stepped.

    It is stable wherever the steps are: also in directions that the trajectory itself has long left.

    Args:
        system: f, differentiable.
        trajectory: with the steps that were ``taken``.
        terminal: λ(T), ``[B, d]``.
    """
    adjoint, growth = terminal, terminal.new_ones(len(terminal))
    times = trajectory.times.to(terminal.dtype).unsqueeze(-1)
    steps = trajectory.times.diff(dim=0).to(terminal.dtype).unsqueeze(-1)
    for start, last in reversed(trajectory.segments()):
        states = trajectory.replay(system, start, last)
        for j in reversed(range(start, last)):
            before = _norm(adjoint)
            adjoint = system.transposed(trajectory.taken[j], states[j - start], times[j], steps[j], adjoint)
            growth = torch.maximum(growth, _norm(adjoint) / before.clamp_min(torch.finfo(before.dtype).tiny))
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


def adjoint_gradient(
    f: Callable[[Tensor, Tensor], Tensor],
    u0: Tensor,
    t1: float,
    terminal_grad: Callable[[Tensor], Tensor],
    num_states: NumStates,
    forward: str = "dopri5",
    backward: str = "modified_euler",
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> tuple[Tensor, Tensor]:
    """dL(u(t1))/du0 for any vector field, autonomous or not (Li et al. 2023, eq. 6 and 7).

    Args:
        f: f(t, u) -> du/dt; t is a 0-d tensor of u's dtype, u has u0's shape. Differentiable by torch.autograd.
        u0: the initial state, of any shape.
        t1: the end time, positive.
        terminal_grad: u(t1) -> dL/du(t1), of u0's shape.
        num_states: K equal intervals of [0, t1], or "accepted".
        forward: a solver of ``SOLVERS``.
        backward: "euler", "modified_euler", "rk4", "discrete" or "backsolve".
        rtol: of an adaptive solver.
        atol: likewise.

    Returns:
        u(t1) and dL/du0, both of u0's shape.

    Raises:
        InputError: an option is unknown or out of range.
        SolverFailedError: an adaptive solver gave up.

    Example:
        >>> import torch, amaml_core as am
        >>> u0 = torch.ones(3, dtype=torch.float64)
        >>> end, grad = am.adjoint_gradient(lambda t, u: -u, u0, 1.0, lambda u: u, 50, backward="rk4", rtol=1e-10)
        >>> bool(torch.allclose(grad, u0 * torch.exp(torch.tensor(-2.0)), atol=1e-7))
        True
    """
    check_solver(forward, num_states, rtol, atol)
    check_backward(backward, forward, num_states)
    positive_number("t1", t1)
    shape = u0.shape

    def field(t: Tensor, u: Tensor) -> Tensor:
        return f(t.reshape(()), u.reshape(shape)).reshape(1, -1)

    def linearize(t: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = field(t, u)

        return value.detach(), lambda v: vector_jacobian(value, u, v, keep=True)

    options = {"solver": forward, "num_states": num_states, "rtol": rtol, "atol": atol}
    horizon = u0.new_full((1,), t1)
    system = System(field, linearize)
    path = solve(system, u0.detach().reshape(1, -1), horizon, keep=backward != "backsolve", **options)
    end = path.states[-1]
    terminal = terminal_grad(end.reshape(shape)).reshape(1, -1)
    if backward == "backsolve":
        solution = backsolve(system, end, horizon, terminal, forward_steps=path.steps, **options)
    elif backward == "discrete":
        solution = discrete(system, path, terminal)
    else:
        solution = tracked(system, path, terminal, BACKWARD[backward])
    return end.reshape(shape), solution.adjoint.reshape(shape)


def autodiff_gradient(
    f: Callable[[Tensor, Tensor], Tensor],
    u0: Tensor,
    t1: float,
    terminal_grad: Callable[[Tensor], Tensor],
    num_states: int,
    forward: str = "heun",
) -> tuple[Tensor, Tensor]:
    """The rival of ``adjoint_gradient``: reverse-mode autodiff through ``num_states`` fixed steps of the solve.

    Arguments and results are those of ``adjoint_gradient``; ``forward`` is "euler", "heun" or "rk4".
    """
    if forward not in FIXED_GRIDS:
        raise InputError(f"forward={forward!r} is unknown here; choose one of {', '.join(FIXED_GRIDS)}.")
    positive_integer("num_states", num_states)
    positive_number("t1", t1)
    h = u0.new_tensor(t1 / num_states)
    with torch.enable_grad():
        start = u = u0.detach().requires_grad_()
        for j in range(num_states):
            u, _ = FIXED_GRIDS[forward].step(lambda c, stage, j=j: f((j + c) * h, stage), u, h)
        return u.detach(), torch.autograd.grad(u, start, terminal_grad(u.detach()))[0]


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
