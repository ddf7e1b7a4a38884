"""Gradients through the solution of any ordinary differential equation, with no network in sight."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from amaml_core.engine.eager import vector_jacobian
from amaml_core.errors import InputError, positive_integer, positive_number
from amaml_core.ode.accuracy import FINER, INACCURATE, SUSPICIOUS, defect, distance, richardson
from amaml_core.ode.adjoint import (
    BACKWARD,
    MAX_GROWTH,
    MISSED,
    AdjointSolution,
    backsolve,
    check_backward,
    discrete,
    gradient_order,
    tracked,
)
from amaml_core.ode.scheme import FIXED_GRIDS, NumStates, SolverFailedError, System
from amaml_core.ode.solve import ADAPTIVE, check_solver, solve
from amaml_core.status import OK, Status


class AdjointGradient(tuple[Tensor, Tensor]):
    """What ``adjoint_gradient`` found: the pair (end, grad), which knows more.

    Attributes:
        end: u(t1), of u0's shape.
        grad: dL/du0, of u0's shape.
        status: "ok", "inaccurate" or "diverged", with its remedy.
        defect: see ``ode.accuracy.defect``; NaN where f depends on t, for ⟨λ, f⟩ changes then, or where f(u0) = 0.
        error_estimate: of ‖grad − the flow's‖ / ‖grad‖; None where there was no need for it and nobody asked.
    """

    end: Tensor
    grad: Tensor
    status: Status
    defect: float
    error_estimate: float | None

    def __new__(
        cls, end: Tensor, grad: Tensor, status: Status, defect: float, error_estimate: float | None
    ) -> AdjointGradient:
        """The pair of the first two."""
        self = super().__new__(cls, (end, grad))
        self.end, self.grad, self.status, self.defect, self.error_estimate = end, grad, status, defect, error_estimate
        return self


@dataclass(frozen=True)
class _Once:
    end: Tensor
    terminal: Tensor
    solution: AdjointSolution
    steps: int

    @property
    def adjoint(self) -> Tensor:
        return self.solution.adjoint

    def unstable(self, start: Tensor, backward: str) -> bool:
        """Whether the way back lengthened λ beyond what its scheme bears, or missed the start."""
        if self.solution.start is not None:
            return not float((self.solution.start - start).norm()) <= MISSED * float((self.end - start).norm())
        if self.solution.growth is not None:
            return not float(self.solution.growth) <= MAX_GROWTH
        return not float(self.solution.stiffness or 0.0) <= BACKWARD[backward].stability


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
    estimate_error: bool | None = None,
) -> AdjointGradient:
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
        estimate_error: whether the gradient is compared with others of half and, where those differ, of twice the
            resolution. None: where its defect, an unstable step or backward="discrete" makes it doubtful. False: never.

    Returns:
        u(t1) and dL/du0, and what stands behind them.

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

    start, horizon = u0.detach().reshape(1, -1), u0.new_full((1,), t1)
    system = System(field, linearize)

    def once(factor: float = 1.0) -> _Once:
        states = max(1, round(num_states * factor)) if isinstance(num_states, int) else num_states
        tighter = factor ** -ADAPTIVE[forward] if forward in ADAPTIVE else 1.0
        options = {"solver": forward, "num_states": states, "rtol": rtol * tighter, "atol": atol * tighter}
        path = solve(system, start, horizon, keep=backward != "backsolve", **options)
        end = path.states[-1]
        terminal = terminal_grad(end.reshape(shape)).reshape(1, -1)
        if backward == "backsolve":
            solution = backsolve(system, end, horizon, terminal, forward_steps=path.steps, **options)
        elif backward == "discrete":
            solution = discrete(system, path, terminal)
        else:
            solution = tracked(system, path, terminal, BACKWARD[backward])
        steps = states if isinstance(states, int) else path.steps
        return _Once(end, terminal, solution, steps)

    found = once()
    with torch.no_grad():
        first, last = field(0.0 * horizon, start), field(horizon, found.end)
        autonomous = torch.equal(first, field(horizon, start))
    share = math.nan
    if autonomous:
        share = float(defect(found.adjoint, first, (found.terminal * last).sum(-1), start, horizon).share)
    error, unstable = None, found.unstable(start, backward)
    finite = bool(torch.isfinite(found.adjoint).all())
    doubtful = unstable or share > SUSPICIOUS or backward == "discrete"  # of which the defect sees little
    if estimate_error or (estimate_error is None and finite and doubtful):
        order = gradient_order(forward, backward)
        error = math.inf  # also where the others cannot be had: what was found is handed out all the same
        with suppress(SolverFailedError):
            coarse = once(0.5)
            if found.steps >= FINER * coarse.steps:
                error = richardson(order) * float(distance(found.adjoint, coarse.adjoint, found.adjoint))
        with suppress(SolverFailedError):
            # one of no more steps may be as unstable, and give the same
            if error > INACCURATE and ((fine := once(2.0)).steps >= FINER * found.steps or not unstable):
                error = float(distance(found.adjoint, fine.adjoint, fine.adjoint)) / (1 - 2.0**-order)
    status = _status(finite, unstable, share, error)
    return AdjointGradient(found.end.reshape(shape), found.adjoint.reshape(shape), status, share, error)


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


def _status(finite: bool, unstable: bool, defect: float, error: float | None) -> Status:
    remedy = "raise num_states, or lower rtol."
    if not finite or (unstable and (error is None or error > INACCURATE)):
        return Status("diverged", f"The solve is unstable or left the finite numbers; {remedy}")
    if error is not None and error > INACCURATE:
        off = f"about {error:.0%} off" if math.isfinite(error) else "off by what could not be estimated"
        return Status("inaccurate", f"The gradient is {off}; {remedy}")
    if defect > SUSPICIOUS:
        return Status(
            "inaccurate",
            f"⟨λ, f⟩ is not the same at both ends (defect {defect:.0%}): f jumps on the way, or the steps are too few.",
        )
    return OK
