"""Forward solves of du/dt = f(t, u) for a batch of trajectories, with the states kept that the way back needs."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from amaml_core.errors import InputError, positive_integer, positive_number
from amaml_core.ode.adaptive import FAMILIES, adaptive
from amaml_core.ode.scheme import (
    FIXED_GRIDS,
    Field,
    NumStates,
    SolverFailedError,
    System,
    Trajectory,
    fixed_grid,
    largest_rms,
)

STABILIZED = tuple(FAMILIES)
OURS = ("rk43", *STABILIZED)
# and the order of what controls their steps
ADAPTIVE = {"rk43": 4, "rkc2": 3, "rkg2": 3, "dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
ADAMS = ("explicit_adams", "implicit_adams")
OTHER_FIXED = ("midpoint", "heun2", "heun3", *ADAMS)  # torchdiffeq's own
SOLVERS = (*FIXED_GRIDS, *ADAPTIVE, *OTHER_FIXED)
MAX_STEPS = 20_000  # an adaptive solve that needs more has met something that it cannot follow


def solve(
    system: System | Field,
    u0: Float[Tensor, "tasks params"],
    horizon: Float[Tensor, " tasks"],
    *,
    solver: str,
    num_states: NumStates,
    rtol: float,
    atol: float,
    keep: bool = True,
    every: int = 1,
    max_steps: int = MAX_STEPS,
    max_stiffness: float = math.inf,
) -> Trajectory:
    """Solve du/dt = f(t, u) from u0 over each task's own [0, T_b].

    Time is scaled to s = t/T_b, so that tasks of different horizons share one grid and one step size.

    Args:
        system: of f(t, u), t ``[B, 1]``, u ``[B, d]``, or f itself.
        u0: ``[B, d]``.
        horizon: T, ``[B]``, positive.
        solver: one of ``SOLVERS``: "euler", "heun" and "rk4" take exactly ``num_states`` steps, "rk43" is rk4 with
            adaptive steps; the others are torchdiffeq's.
        num_states: K = K equal intervals of each [0, T_b], where an adaptive solver's points are as good as its
            interpolant (torchdiffeq's of order 4, a cubic in ours); "accepted" = the adaptive solver's
            own steps, a grid that belongs to the whole batch.
        rtol: of an adaptive solver. The error norm is the largest of the tasks' RMS norms, so that a task's
            accuracy does not depend on its neighbours.
        atol: likewise.
        keep: keep all K+1 states; otherwise only the first and the last.
        every: on a fixed grid, keep only every so-manieth state and the last one.
        max_steps: an adaptive solver gives up after so many steps, rejected ones included.
        max_stiffness: ours keep h‖∂f/∂u‖ below this, by their own estimate. A way back on their steps needs what is
            left of its scheme's stability limit: it meets all directions, also those that the way out has damped.

    Raises:
        SolverFailedError: an adaptive solver gave up.
    """
    system = system if isinstance(system, System) else System(system)
    scale = horizon.unsqueeze(1)
    if solver in FIXED_GRIDS:
        assert isinstance(num_states, int)
        return fixed_grid(system, u0, horizon, FIXED_GRIDS[solver], num_states, keep, every)
    if solver in OURS:
        own = {"solver": solver, "num_states": num_states, "rtol": rtol, "atol": atol}
        return adaptive(system, u0, horizon, keep=keep, max_steps=max_steps, max_stiffness=max_stiffness, **own)
    accepted: list[tuple[Tensor, Tensor]] = []
    counts = {"accepted": 0, "rejected": 0}
    track_steps = keep and num_states == "accepted"

    def scaled(s: Tensor, u: Tensor) -> Tensor:
        return scale * system.field(s * scale, u)

    def count(outcome: str) -> None:
        counts[outcome] += 1
        if sum(counts.values()) > max_steps:
            raise SolverFailedError(f"{solver} took more than {max_steps} steps")

    def accept(s: Tensor, u: Tensor, ds: Tensor) -> None:
        count("accepted")
        if track_steps:
            accepted.append((s, u))

    def reject(s: Tensor, u: Tensor, ds: Tensor) -> None:
        count("rejected")

    import torchdiffeq  # brings SciPy along, half a second that programs without an adaptive solve need not wait

    intervals = num_states if isinstance(num_states, int) else 1
    grid = torch.linspace(0, 1, intervals + 1, dtype=torch.float64, device=u0.device)
    kept = grid if keep else grid[[0, -1]]
    options: dict[str, Any] = {"grid_constructor": lambda f, u, s: grid}
    if solver in ADAPTIVE:
        # torchdiffeq looks for its callbacks among the attributes of the function
        scaled.__dict__.update(callback_accept_step=accept, callback_reject_step=reject)
        # the last step ends on T itself, so that the adjoint starts from a solver state and not from an interpolant
        options = {"norm": largest_rms, "step_t": grid[-1:]}
    elif solver in ADAMS:
        options["max_order"] = 4  # torchdiffeq's default of 12 has hardly any stability left
    try:
        with torch.no_grad():
            states = torchdiffeq.odeint(scaled, u0, kept, rtol=rtol, atol=atol, method=solver, options=options)
    except AssertionError as error:  # torchdiffeq's way to say so; its message may print whole tensors
        raise SolverFailedError(str(error).split(":")[0][:80]) from error
    assert isinstance(states, Tensor)
    if track_steps:
        points = [s for s, _ in accepted]
        times = torch.stack([*points, grid[-1]]).unsqueeze(1) * horizon
        return Trajectory(times, [*(u for _, u in accepted), states[-1]], counts["accepted"], counts["rejected"])
    if solver not in ADAPTIVE:
        counts["accepted"] = intervals
    times = kept.unsqueeze(1) * horizon
    return Trajectory(times, states, counts["accepted"], counts["rejected"])


def check_solver(solver: str, num_states: object, rtol: float, atol: float) -> None:
    """Refuse solver options that make no sense.

    Raises:
        InputError: naming the option and what it may be.
    """
    if solver not in SOLVERS:
        raise InputError(f"forward={solver!r} is unknown; choose one of {', '.join(SOLVERS)}.")
    if num_states == "accepted":
        if solver not in ADAPTIVE:
            raise InputError(
                f'num_states="accepted" needs an adaptive forward solver ({", ".join(ADAPTIVE)}); '
                f"{solver!r} has a fixed grid, so give an integer."
            )
    else:
        positive_integer("num_states", num_states)
    positive_number("rtol", rtol)
    positive_number("atol", atol)
