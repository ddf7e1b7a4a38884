"""Forward solves of du/dt = f(t, u) for a batch of trajectories, with the states kept that the way back needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from amaml_core.errors import InputError, positive_integer, positive_number

Field = Callable[[Tensor, Tensor], Tensor]
"""f(t [B, 1], u [B, d]) -> du/dt [B, d]."""


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
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
ADAMS = ("explicit_adams", "implicit_adams")
OTHER_FIXED = ("midpoint", "heun2", "heun3", *ADAMS)  # torchdiffeq's own
SOLVERS = (*FIXED_GRIDS, *ADAPTIVE, *OTHER_FIXED)
MAX_STEPS = 20_000  # an adaptive solve that needs more has met something that it cannot follow

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
    """

    times: Float[Tensor, "points tasks"]
    states: Tensor | list[Tensor]
    steps: int
    rejected: int = 0

    def stopped_at(self, index: Tensor) -> Trajectory:
        """Every task held still from its own point ``index [B]`` on: later intervals get width zero."""
        points = torch.arange(int(index.max()) + 1, device=index.device).unsqueeze(1).minimum(index)
        tasks = torch.arange(len(index), device=index.device)
        times = self.times.gather(0, points)
        rows = [torch.stack([self.states[int(p)][b] for p, b in zip(row, tasks, strict=True)]) for row in points]
        return Trajectory(times, rows, self.steps, self.rejected)


def solve(
    field: Field,
    u0: Float[Tensor, "tasks params"],
    horizon: Float[Tensor, " tasks"],
    *,
    solver: str,
    num_states: NumStates,
    rtol: float,
    atol: float,
    keep: bool = True,
    max_steps: int = MAX_STEPS,
) -> Trajectory:
    """Solve du/dt = f(t, u) from u0 over each task's own [0, T_b].

    Time is scaled to s = t/T_b, so that tasks of different horizons share one grid and one step size.

    Args:
        field: f(t, u), t ``[B, 1]``, u ``[B, d]``.
        u0: ``[B, d]``.
        horizon: T, ``[B]``, positive.
        solver: one of ``SOLVERS``: "euler", "heun" and "rk4" take exactly ``num_states`` steps; the others are
            torchdiffeq's.
        num_states: K = K equal intervals of each [0, T_b], where an adaptive solver's points are as good as
            torchdiffeq's interpolant of order 4; "accepted" = the adaptive solver's own steps, a grid that belongs
            to the whole batch.
        rtol: of an adaptive solver. The error norm is the largest of the tasks' RMS norms, so that a task's
            accuracy does not depend on its neighbours.
        atol: likewise.
        keep: keep all K+1 states; otherwise only the first and the last.
        max_steps: an adaptive solver gives up after so many steps, rejected ones included.

    Raises:
        SolverFailedError: an adaptive solver gave up.
    """
    scale = horizon.unsqueeze(1)
    if solver in FIXED_GRIDS:
        assert isinstance(num_states, int)
        return _fixed_grid(field, u0, horizon, FIXED_GRIDS[solver], num_states, keep)
    accepted: list[tuple[Tensor, Tensor]] = []
    counts = {"accepted": 0, "rejected": 0}
    track_steps = keep and num_states == "accepted"

    def scaled(s: Tensor, u: Tensor) -> Tensor:
        return scale * field(s * scale, u)

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
        options = {"norm": _largest_rms, "step_t": grid[-1:]}
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
        return Trajectory(times, [*(u for _, u in accepted), states[-1]], **_tally(counts))
    if solver not in ADAPTIVE:
        counts["accepted"] = intervals
    times = kept.unsqueeze(1) * horizon
    return Trajectory(times, states, **_tally(counts))


def _tally(counts: dict[str, int]) -> dict[str, int]:
    return {"steps": counts["accepted"], "rejected": counts["rejected"]}


def _largest_rms(error: Float[Tensor, "tasks params"]) -> Tensor:
    return error.abs().square().mean(-1).sqrt().max()


def _fixed_grid(field: Field, u0: Tensor, horizon: Tensor, tableau: Tableau, count: int, keep: bool) -> Trajectory:
    times = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=u0.device).unsqueeze(1) * horizon
    h = (horizon / count).unsqueeze(1)
    states = u0.new_empty((count + 1 if keep else 2, *u0.shape))
    states[0] = u = u0
    with torch.no_grad():
        for j in range(count):
            t = times[j].to(u0.dtype).unsqueeze(1)
            u, _ = tableau.step(lambda c, stage, t=t: field(t + c * h, stage), u, h)
            if keep:
                states[j + 1] = u
    states[-1] = u
    return Trajectory(times if keep else times[[0, -1]], states, steps=count)


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
