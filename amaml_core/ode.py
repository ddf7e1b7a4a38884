"""Forward solves of du/dt = f(t, u) for a batch of trajectories, with the states kept that the way back needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from amaml_core.errors import InputError, positive_integer, positive_number

Field = Callable[[Tensor, Tensor], Tensor]
"""f(t [B, 1], u [B, d]) -> du/dt [B, d]."""
Linearize = Callable[[Tensor, Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]
"""(t [B, 1], u [B, d]) -> (f(t, u) [B, d], the product v -> (∂f/∂u)ᵀ v)."""


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

    def per_call(self, cost: int) -> int | None:
        """How many steps of this many evaluations make one compiled call; None where nothing is compiled."""
        return None


def _no_products(t: Tensor, u: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    raise NotImplementedError("this system was built without linearize")


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
ADAPTIVE = ("rk43", "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")  # the first is ours
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
        every: only every so-manieth state is kept, and the last one; ``replay`` computes the others again.
        tableau: the scheme of a fixed grid, to replay.
    """

    times: Float[Tensor, "points tasks"]
    states: Tensor | list[Tensor]
    steps: int
    rejected: int = 0
    every: int = 1
    tableau: Tableau | None = None

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
        for reached in _march(system, states[0], starts, h, self.tableau):
            states += reached
        return states

    def stopped_at(self, index: Tensor) -> Trajectory:
        """Every task held still from its own point ``index [B]`` on: later intervals get width zero."""
        points = torch.arange(int(index.max()) + 1, device=index.device).unsqueeze(1).minimum(index)
        tasks = torch.arange(len(index), device=index.device)
        times = self.times.gather(0, points)
        rows = [torch.stack([self.states[int(p)][b] for p, b in zip(row, tasks, strict=True)]) for row in points]
        return Trajectory(times, rows, self.steps, self.rejected)


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
    max_stiffness: float = 0.9 * RK4.stability,
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
            interpolant (torchdiffeq's of order 4, a cubic in "rk43"); "accepted" = the adaptive solver's own steps,
            a grid that belongs to the whole batch.
        rtol: of an adaptive solver. The error norm is the largest of the tasks' RMS norms, so that a task's
            accuracy does not depend on its neighbours.
        atol: likewise.
        keep: keep all K+1 states; otherwise only the first and the last.
        every: on a fixed grid, keep only every so-manieth state and the last one.
        max_steps: an adaptive solver gives up after so many steps, rejected ones included.
        max_stiffness: "rk43" keeps h‖∂f/∂u‖ below this, by its own estimate. A way back on its steps needs what is
            left of its scheme's stability limit: it meets all directions, also those that the way out has damped.

    Raises:
        SolverFailedError: an adaptive solver gave up.
    """
    system = system if isinstance(system, System) else System(system)
    scale = horizon.unsqueeze(1)
    if solver in FIXED_GRIDS:
        assert isinstance(num_states, int)
        return _fixed_grid(system, u0, horizon, FIXED_GRIDS[solver], num_states, keep, every)
    if solver == "rk43":
        return _rk43(system, u0, horizon, num_states, Attempt(rtol, atol), keep, max_steps, max_stiffness)
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


def pieces(total: int, most: int) -> list[int]:
    """``total`` cut into runs of at most ``most``, all alike if there is a fitting length, for each is compiled."""
    length = next((n for n in range(min(most, total), most // 2, -1) if total % n == 0), min(most, total))
    return [min(length, total - start) for start in range(0, total, length)]


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


def _march(system: System, u: Tensor, starts: Tensor, h: Tensor, tableau: Tableau) -> Iterator[tuple[Tensor, ...]]:
    """Steps of h ``[B, 1]`` from u, one at each of the times ``[K, B, 1]``; the states come in runs of a call each."""
    with torch.no_grad():
        for length in pieces(len(starts), system.per_call(len(tableau.b)) or 1):
            reached = system.run(Advance(tableau, length), u, starts[:length], h)
            yield reached
            u, starts = reached[-1], starts[length:]


def _fixed_grid(
    system: System, u0: Tensor, horizon: Tensor, tableau: Tableau, count: int, keep: bool, every: int
) -> Trajectory:
    times = torch.linspace(0, 1, count + 1, dtype=torch.float64, device=u0.device).unsqueeze(1) * horizon
    h = (horizon / count).unsqueeze(1)
    every = every if keep else count
    states = u0.new_empty((-(-count // every) + 1, *u0.shape))
    states[0] = u = u0
    done = 0
    for reached in _march(system, u, times[:-1].to(u0.dtype).unsqueeze(-1), h, tableau):
        for u in reached:
            done += 1
            if done % every == 0:
                states[done // every] = u
    states[-1] = u
    if not keep:
        return Trajectory(times[[0, -1]], states, steps=count)
    return Trajectory(times, states, steps=count, every=every, tableau=tableau)


@dataclass(frozen=True)
class Attempt:
    """One step of rk4 with its error: (u, f(t, u) ``[B, d]``, t, h ``[B, 1]``) -> (u', f(t+h, u'), judgement ``[2]``).

    The slope at the new point, which the next step starts with, gives a third-order solution for comparison (Hairer,
    Nørsett and Wanner 1993, sec. II.4) and, against the last stage at the same time, a lower bound of h‖∂f/∂u‖ where
    it matters: their difference lies in the stiff directions. The judgement is (the largest of the tasks' RMS errors
    in units of the tolerance, the largest h‖∂f/∂u‖).
    """

    rtol: float
    atol: float

    def __call__(self, system: System, u: Tensor, slope: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Whether the step is any good is the caller's to decide."""
        slopes: list[Tensor] = []

        def field(c: float, stage: Tensor) -> Tensor:
            slopes.append(system.field(t + c * h, stage) if slopes else slope)
            return slopes[-1]

        new, stages = RK4.step(field, u, h)
        end = system.field(t + h, new)
        change = end - slopes[-1]
        error = 0.1 * h * change / (self.atol + self.rtol * torch.maximum(u.abs(), new.abs()))
        distance = (new - stages[-1]).square().sum(-1).clamp_min(torch.finfo(u.dtype).tiny)
        stiffness = h.squeeze(-1) * (change.square().sum(-1) / distance).sqrt()
        return new, end, torch.stack([_largest_rms(error), stiffness.max()])


def _rk43(
    system: System,
    u: Tensor,
    horizon: Tensor,
    num_states: NumStates,
    attempt: Attempt,
    keep: bool,
    max_steps: int,
    max_stiffness: float,
) -> Trajectory:
    """rk4 with adaptive steps, which mind the error and the stability limit of the way back."""
    scale = horizon.unsqueeze(1)
    grid = torch.linspace(0, 1, num_states + 1, dtype=torch.float64).tolist() if isinstance(num_states, int) else []
    times, states, steps, rejected, s, before = [0.0], [u], 0, 0, 0.0, 1.0
    with torch.no_grad():
        slope = system.field(0.0 * scale, u)
        ds, stiffness = _first_step(system, u, slope, scale, attempt)
        while s < 1.0:
            if steps + rejected >= max_steps:
                raise SolverFailedError(f"rk43 took more than {max_steps} steps")
            if stiffness > 0:
                ds = min(ds, max_stiffness / stiffness)
            if not ds > 1e-10:
                raise SolverFailedError("rk43's step size vanished")
            if 1.0 - s < 2 * ds:  # the last two steps are equal, not one of them tiny
                ds = (1.0 - s) / math.ceil((1.0 - s) / ds - 1e-9)
            new, end, judgement = system.run(attempt, u, slope, s * scale, ds * scale)
            error, seen = judgement.tolist()
            if not error <= 1.0:  # NaN too
                rejected += 1
                ds *= max(0.2, 0.9 * error**-0.25) if error < math.inf else 0.2
                continue
            steps += 1
            reached = s + ds if 1.0 - (s + ds) > 1e-9 else 1.0
            if keep and grid:
                for point in grid[len(times) : -1]:
                    if point > reached:
                        break
                    times.append(point)
                    states.append(_hermite((point - s) / (reached - s), ds * scale, u, slope, new, end))
            elif keep:
                times.append(reached)
                states.append(new)
            s, u, slope = reached, new, end
            stiffness = max(0.95 * stiffness, seen / ds)  # the curvature changes slowly along the way
            error = max(error, 1e-4)
            ds *= min(5.0, 0.9 * error**-0.175 * before**0.1)
            before = error
    if times[-1] < 1.0:
        times.append(1.0)
        states.append(u)
    at = torch.tensor(times, dtype=torch.float64, device=u.device).unsqueeze(1) * horizon
    return Trajectory(at, states, steps, rejected)


def _first_step(system: System, u: Tensor, slope: Tensor, scale: Tensor, attempt: Attempt) -> tuple[float, float]:
    """A first step, as a share of the horizon, and ‖∂f/∂u‖ times the horizon (Hairer et al. 1993, sec. II.4)."""
    tolerance = attempt.atol + attempt.rtol * u.abs()
    size, speed = float(_largest_rms(u / tolerance)), float(_largest_rms(scale * slope / tolerance))
    if not 0 < speed < math.inf:
        return 1.0, 0.0
    ds = min(0.01 * size / speed, 1.0) or 1e-6
    change = system.field(ds * scale, u + ds * scale * slope) - slope
    bend = float(_largest_rms(scale * change / tolerance)) / ds
    stiffness = scale.squeeze(-1) * change.norm(dim=-1) / (ds * scale * slope).norm(dim=-1).clamp_min(1e-30)
    found = float(stiffness.max())
    return min(100 * ds, (0.01 / max(speed, bend)) ** 0.25), found if math.isfinite(found) else 0.0


def _hermite(x: float, h: Tensor, u: Tensor, slope: Tensor, new: Tensor, end: Tensor) -> Tensor:
    """The cubic through both ends of a step and their slopes, at the share x of it; its error is O(h⁴)."""
    return (
        (1 + 2 * x) * (1 - x) ** 2 * u
        + x * (1 - x) ** 2 * h * slope
        + x**2 * (3 - 2 * x) * new
        + x**2 * (x - 1) * h * end
    )


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
